# Completes a CUDA toolkit that comes in parts, as NVIDIA's wheels do: finds cuBLAS in the wheels of the Python at hand
# when the toolkit has none, and makes a libcuda.so to link against when there is neither a driver nor a stub of it.
# Upstream's own find_package(CUDAToolkit) comes later and keeps the targets that are there.
if(NOT GGML_CUDA)
    return()
endif()
find_package(CUDAToolkit)
if(NOT CUDAToolkit_FOUND)
    message(FATAL_ERROR "phiggml: GGML_CUDA: there is no CUDA toolkit here. Install one, or name its nvcc in CUDACXX.")
endif()
set(cuda_parts ${PROJECT_BINARY_DIR}/cuda)

if(NOT TARGET CUDA::cublas)
    find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
    execute_process(
        COMMAND ${Python_EXECUTABLE} -c "import nvidia; print(*nvidia.__path__, sep=';', end='')"
        OUTPUT_VARIABLE wheels ERROR_QUIET)
    set(major ${CUDAToolkit_VERSION_MAJOR})
    find_library(
        PHIGGML_CUBLAS NAMES libcublas.so.${major} cublas PATHS ${wheels} NO_DEFAULT_PATH
        PATH_SUFFIXES cu${major}/lib cu${major}/lib/x64 cublas/lib cublas/lib/x64)
    find_path(
        PHIGGML_CUBLAS_INCLUDE NAMES cublas_v2.h PATHS ${wheels} NO_DEFAULT_PATH
        PATH_SUFFIXES cu${major}/include cublas/include)
    if(NOT PHIGGML_CUBLAS OR NOT PHIGGML_CUBLAS_INCLUDE)
        message(FATAL_ERROR "phiggml: the CUDA toolkit in ${CUDAToolkit_BIN_DIR} has no cuBLAS. Install that part of "
                            "it, or install nvidia-cublas with pip and build with --no-build-isolation.")
    endif()
    # Only cuBLAS's own headers: the runtime's, which may lie beside them, can be of another version than nvcc.
    file(GLOB headers ${PHIGGML_CUBLAS_INCLUDE}/cublas*.h)
    file(COPY ${headers} DESTINATION ${cuda_parts}/include)
    add_library(CUDA::cublas UNKNOWN IMPORTED)
    set_target_properties(
        CUDA::cublas PROPERTIES IMPORTED_LOCATION ${PHIGGML_CUBLAS}
        INTERFACE_INCLUDE_DIRECTORIES "${cuda_parts}/include;${CUDAToolkit_INCLUDE_DIRS}")
    cmake_path(GET PHIGGML_CUBLAS PARENT_PATH cublas_folder)
    message(STATUS "phiggml: cuBLAS: ${PHIGGML_CUBLAS}")
endif()

# Only the linker sees the stub: it puts the driver's soname into the module, which the driver then answers to.
if(NOT TARGET CUDA::cuda_driver)
    set(calls GetErrorString DeviceGet DeviceGetAttribute MemAddressFree MemAddressReserve MemCreate
              MemGetAllocationGranularity MemMap MemRelease MemSetAccess MemUnmap)
    list(TRANSFORM calls REPLACE "(.+)" "int cu\\1(void) { return 999\\\\; }\n")
    list(JOIN calls "" source)
    file(CONFIGURE OUTPUT ${cuda_parts}/libcuda.c CONTENT "${source}" @ONLY)
    file(MAKE_DIRECTORY ${cuda_parts}/stubs)
    execute_process(
        COMMAND ${CMAKE_C_COMPILER} -shared -fPIC -Wl,-soname,libcuda.so.1 -o ${cuda_parts}/stubs/libcuda.so
                ${cuda_parts}/libcuda.c
        COMMAND_ERROR_IS_FATAL ANY)
    add_library(CUDA::cuda_driver UNKNOWN IMPORTED)
    set_target_properties(CUDA::cuda_driver PROPERTIES IMPORTED_LOCATION ${cuda_parts}/stubs/libcuda.so)
    message(STATUS "phiggml: libcuda: a stub to link against")
endif()

# A plugin finds the libraries in NVIDIA's wheels, which have no NCCL; a source build's lie where they were linked.
if(PHIGGML_PLUGIN)
    set(GGML_CUDA_NCCL OFF CACHE BOOL "" FORCE)
else()
    cmake_language(
        DEFER CALL set_property TARGET ggml-cuda APPEND PROPERTY INSTALL_RPATH ${CUDAToolkit_LIBRARY_DIR} ${cublas_folder})
endif()
