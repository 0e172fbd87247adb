# PHIGGML_PLUGIN names a backend that is built as a distribution of its own, without anything else.
set(PHIGGML_PLUGIN "" CACHE STRING "cuda13, cuda12, vulkan, rocm, sycl or rpc: build this plugin and nothing else")
if(NOT PHIGGML_PLUGIN)
    return()
endif()

# Name, ggml's backend, upstream's switch, where the module looks for the vendor's libraries, and which of those
# cuda-pathfinder looks for before that, the driver first.
set(plugin_cuda13 cuda GGML_CUDA "$ORIGIN/../nvidia/cu13/lib" cuda cudart cublas)
set(plugin_cuda12 cuda GGML_CUDA "$ORIGIN/../nvidia/cublas/lib:$ORIGIN/../nvidia/cuda_runtime/lib" cuda cudart cublas)
set(plugin_vulkan vulkan GGML_VULKAN "")
set(plugin_rocm hip GGML_HIP "")
set(plugin_sycl sycl GGML_SYCL "")
set(plugin_rpc rpc GGML_RPC "")
if(NOT DEFINED plugin_${PHIGGML_PLUGIN})
    message(FATAL_ERROR "phiggml: PHIGGML_PLUGIN=${PHIGGML_PLUGIN}: there is no such plugin")
endif()
list(GET plugin_${PHIGGML_PLUGIN} 0 PHIGGML_PLUGIN_BACKEND)
list(GET plugin_${PHIGGML_PLUGIN} 1 switch)
list(GET plugin_${PHIGGML_PLUGIN} 2 PHIGGML_PLUGIN_RUNPATH)
set(PHIGGML_PLUGIN_NEEDS "${plugin_${PHIGGML_PLUGIN}}")
list(REMOVE_AT PHIGGML_PLUGIN_NEEDS 0 1 2)
set(${switch} ON CACHE BOOL "" FORCE)
set(GGML_CPU OFF CACHE BOOL "" FORCE)
