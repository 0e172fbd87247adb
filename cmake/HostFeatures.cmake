# Sets GGML_<feature> for the CPU at hand, so that one ggml-cpu module that fits it is compiled. What the user has
# set stays. The compiler is asked (-march=native), which knows both the CPU and what the system saves on a switch.
function(phiggml_detect_host_features)
    set(features SSE42 AVX AVX_VNNI AVX2 BMI2 FMA F16C AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16 AMX_TILE AMX_INT8
                 AMX_BF16)
    set(macros SSE4_2 AVX AVXVNNI AVX2 BMI2 FMA F16C AVX512BW AVX512VBMI AVX512VNNI AVX512BF16 AMX_TILE AMX_INT8
               AMX_BF16)
    execute_process(
        COMMAND ${CMAKE_CXX_COMPILER} -march=native -dM -E -x c++ -
        INPUT_FILE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/empty.in
        OUTPUT_VARIABLE predefined ERROR_QUIET RESULT_VARIABLE failed)
    if(failed OR CMAKE_CROSSCOMPILING)
        message(STATUS "phiggml: the CPU's features are unknown here; the CPU module is built for AVX2")
        set(predefined "__SSE4_2__ 1 __AVX__ 1 __AVX2__ 1 __BMI2__ 1 __FMA__ 1 __F16C__ 1")
    endif()
    set(found "")
    foreach(feature macro IN ZIP_LISTS features macros)
        set(value OFF)
        if(predefined MATCHES "__${macro}__ 1")
            set(value ON)
        endif()
        set(GGML_${feature} ${value} CACHE BOOL "ggml: use ${feature} (detected by phiggml)")
        if(GGML_${feature})
            list(APPEND found ${feature})
        endif()
    endforeach()
    list(JOIN found " " found)
    message(STATUS "phiggml: CPU module with: ${found}")
endfunction()
