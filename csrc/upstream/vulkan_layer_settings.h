// Included before ggml-vulkan.cpp where the Vulkan headers are older than VK_EXT_layer_settings (1.3.268), as Debian
// 12's are: what that file names of it, laid out as in the registry. A loader without the extension skips the
// structure.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml-vulkan-types.h"  // vulkan.hpp as ggml-vulkan.cpp has it, with its dispatcher

namespace vk {

enum class LayerSettingTypeEXT { eBool32 = 0 };

struct LayerSettingEXT {
    const char * pLayerName;
    const char * pSettingName;
    LayerSettingTypeEXT type;
    std::uint32_t valueCount;
    const void * pValues;
};

struct LayerSettingsCreateInfoEXT {
    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> & settings)
        : settingCount(static_cast<std::uint32_t>(settings.size())), pSettings(settings.data()) {}

    VkStructureType sType = static_cast<VkStructureType>(1000496000);
    const void * pNext = nullptr;
    std::uint32_t settingCount;
    const LayerSettingEXT * pSettings;
};

}  // namespace vk
