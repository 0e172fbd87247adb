# Lets ggml-vulkan compile with Vulkan headers that are too old for it, such as those of Debian 12.
if(TARGET ggml-vulkan)
    include(CheckCXXSourceCompiles)
    set(CMAKE_REQUIRED_INCLUDES ${Vulkan_INCLUDE_DIR})
    check_cxx_source_compiles(
        "#include <vulkan/vulkan.hpp>\nint main() { vk::LayerSettingEXT setting; return setting.valueCount; }"
        PHIGGML_HAS_LAYER_SETTINGS)
    unset(CMAKE_REQUIRED_INCLUDES)
    if(NOT PHIGGML_HAS_LAYER_SETTINGS)
        set_source_files_properties(
            ${PHIGGML_TREE}/ggml/src/ggml-vulkan/ggml-vulkan.cpp TARGET_DIRECTORY ggml-vulkan
            PROPERTIES COMPILE_OPTIONS
            "-I${PHIGGML_TREE}/ggml/src/ggml-vulkan;-include;${PROJECT_SOURCE_DIR}/csrc/upstream/vulkan_layer_settings.h")
    endif()
endif()
