# Adds the vectorised quantizers to a target: each file of csrc/kernels is compiled once for AVX2 and once for AVX-512,
# and runs where the CPU has it. No contraction to fused multiply-add: results are held to ggml's, which rounds twice.
function(phiggml_add_kernels target)
    if(MSVC OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
        return()
    endif()
    set(avx2_flags -mavx2 -mf16c -mno-fma)
    set(avx512_flags -mavx2 -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512)
    cmake_path(SET csrc NORMALIZE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../csrc)
    file(GLOB sources CONFIGURE_DEPENDS ${csrc}/kernels/*.cpp)
    foreach(set avx2 avx512)
        add_library(kernels-${set} OBJECT ${sources})
        target_include_directories(kernels-${set} PRIVATE ${csrc})
        target_include_directories(
            kernels-${set} SYSTEM PRIVATE ${PHIGGML_TREE}/ggml/include ${PHIGGML_TREE}/ggml/src)
        target_compile_options(
            kernels-${set} PRIVATE -O3 ${${set}_flags} -ffp-contract=off -fno-math-errno -fno-trapping-math
            -Wall -Wextra -Wpedantic -Werror -fvisibility=hidden)
        target_link_libraries(${target} PRIVATE kernels-${set})
    endforeach()
    target_compile_definitions(${target} PRIVATE PHIGGML_HAS_KERNELS)
endfunction()
