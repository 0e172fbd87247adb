#include "kernel_set.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>

#include "error.h"

#if defined(PHIGGML_HAS_KERNELS)
namespace phiggml::kernels::avx2 {
Table make_table();
}
namespace phiggml::kernels::avx512 {
Table make_table();
}
#endif

namespace phiggml {

namespace {

struct KernelSet {
    std::string name;
    kernels::Table table;
};

const std::vector<KernelSet> & sets() {
    static const std::vector<KernelSet> found = [] {
        std::vector<KernelSet> sets;
#if defined(PHIGGML_HAS_KERNELS)
        // These look at what the operating system saves, too.
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
            sets.push_back({"avx512", kernels::avx512::make_table()});
        }
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
            sets.push_back({"avx2", kernels::avx2::make_table()});
        }
#endif
        sets.push_back({"ggml", {}});
        return sets;
    }();
    return found;
}

// What each variant of ggml's CPU module may use, of ours.
const char * set_of_variant(std::string_view variant) {
    for (const char * name :
         {"skylakex", "cannonlake", "cascadelake", "icelake", "cooperlake", "zen4", "sapphirerapids"}) {
        if (variant == name) {
            return "avx512";
        }
    }
    if (variant == "haswell" || variant == "alderlake") {
        return "avx2";
    }
    for (const char * name : {"x64", "sse42", "sandybridge", "ivybridge", "piledriver"}) {
        if (variant == name) {
            return "ggml";
        }
    }
    return nullptr;
}

const KernelSet * find(std::string_view name) {
    const auto at = std::find_if(sets().begin(), sets().end(), [&](const KernelSet & set) { return set.name == name; });
    return at == sets().end() ? nullptr : &*at;
}

const KernelSet * first_choice() {
    const char * variant = std::getenv("PHIGGML_CPU_VARIANT");
    if (variant == nullptr || *variant == '\0') {
        return &sets().front();
    }
    const char * name = set_of_variant(variant);
#if !defined(PHIGGML_HAS_KERNELS)
    name = "ggml";
#endif
    if (name == nullptr) {
        throw Error(ErrorKind::device, "quantize: PHIGGML_CPU_VARIANT=" + std::string(variant) +
                                           ": no such CPU variant is known. Unset it to let the best one be chosen.");
    }
    const KernelSet * set = find(name);
    if (set == nullptr) {
        throw Error(ErrorKind::device, "quantize: PHIGGML_CPU_VARIANT=" + std::string(variant) +
                                           ": this CPU does not run " + name +
                                           ". Unset it to let the best one be chosen.");
    }
    return set;
}

std::atomic<const KernelSet *> chosen{nullptr};

const KernelSet & set_in_use() {
    const KernelSet * set = chosen;
    if (set == nullptr) {
        set = first_choice();
        chosen = set;
    }
    return *set;
}

}  // namespace

std::vector<std::string> kernel_sets() {
    std::vector<std::string> names;
    for (const KernelSet & set : sets()) {
        names.push_back(set.name);
    }
    return names;
}

std::string kernel_set() {
    return set_in_use().name;
}

void use_kernel_set(const std::string & name) {
    const KernelSet * set = find(name);
    if (set == nullptr) {
        throw Error(ErrorKind::input, "use_kernel_set: " + name + " is no set of kernels that runs here.");
    }
    chosen = set;
}

const kernels::Table & kernel_table() {
    return set_in_use().table;
}

}  // namespace phiggml
