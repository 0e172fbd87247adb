# Installs what other extensions need to link our ggml and llama.cpp: headers, and a package for find_package(phiggml).

include(CMakePackageConfigHelpers)

set(headers ${PHIGGML_TREE}/include/llama.h ${PHIGGML_TREE}/include/llama-cpp.h)
foreach(name ggml ggml-alloc ggml-backend ggml-cpp ggml-cpu ggml-opt gguf)
    list(APPEND headers ${PHIGGML_TREE}/ggml/include/${name}.h)
endforeach()

file(STRINGS ${PROJECT_SOURCE_DIR}/pyproject.toml version REGEX "^version = ")
string(REGEX REPLACE "^version = \"([0-9.]+).*" "\\1" version "${version}")
get_directory_property(phiggml_GGML_VERSION DIRECTORY ${PHIGGML_TREE}/ggml DEFINITION GGML_VERSION)

set(package ${PROJECT_BINARY_DIR}/package)
configure_file(${PROJECT_SOURCE_DIR}/cmake/phiggmlConfig.cmake.in ${package}/phiggmlConfig.cmake.in @ONLY)
file(GENERATE OUTPUT ${package}/phiggmlConfig.cmake INPUT ${package}/phiggmlConfig.cmake.in)
write_basic_package_version_file(
    ${package}/phiggmlConfigVersion.cmake VERSION ${version} COMPATIBILITY SameMinorVersion)

install(FILES ${headers} DESTINATION phiggml/include COMPONENT phiggml)
install(FILES ${package}/phiggmlConfig.cmake ${package}/phiggmlConfigVersion.cmake
        DESTINATION phiggml/cmake COMPONENT phiggml)
