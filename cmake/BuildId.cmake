# What a backend's module and the libraries that load it must have in common: the pinned source, and the options that
# change ggml's structures. Both carry it; a module of another id is not loaded.
file(SHA256 ${PROJECT_SOURCE_DIR}/third_party/llama_cpp.json pin_hash)
set(layout "${pin_hash}")
foreach(option GGML_MAX_NAME GGML_SCHED_MAX_COPIES GGML_BACKEND_DL)
    string(APPEND layout " ${option}=${${option}}")
endforeach()
string(SHA256 PHIGGML_BUILD_ID "${layout}")
string(SUBSTRING ${PHIGGML_BUILD_ID} 0 12 PHIGGML_BUILD_ID)
