#include "runtime.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <deque>
#include <filesystem>
#include <mutex>
#include <string_view>

#include "error.h"
#include "ggml-backend.h"
#include "llama.h"

namespace phiggml {

namespace {

class LogRing {
public:
    void add(ggml_log_level level, const char * text) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (level == GGML_LOG_LEVEL_CONT && !records_.empty()) {
            records_.back().text += text;
            return;
        }
        records_.push_back({python_level(level, text), text});
        ++n_added_;
        if (records_.size() > capacity) {
            records_.pop_front();
        }
    }

    std::vector<LogRecord> take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::vector<LogRecord> taken(std::make_move_iterator(records_.begin()),
                                     std::make_move_iterator(records_.end()));
        records_.clear();
        return taken;
    }

    std::uint64_t position() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return n_added_;
    }

    // The first that holds these words.
    std::string first_error_since(std::uint64_t position, const std::string & words = "") {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto is_error = [&](const LogRecord & record) {
            return record.level >= 40 && record.text.find(words) != std::string::npos;
        };
        const auto found = std::find_if(first_since(position), records_.end(), is_error);
        return found == records_.end() ? "" : found->text;
    }

    void change_since(std::uint64_t position, const std::function<void(LogRecord &)> & change) {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::for_each(first_since(position), records_.end(), change);
    }

private:
    static constexpr std::size_t capacity = 4096;

    std::deque<LogRecord>::iterator first_since(std::uint64_t position) {
        const auto n_new = std::min<std::uint64_t>(n_added_ - position, records_.size());
        return records_.end() - static_cast<std::ptrdiff_t>(n_new);
    }

    static int python_level(ggml_log_level level, std::string_view text) {
        // A session asks for that; it is no warning.
        const bool chosen = text.find("using full-size SWA cache") != std::string_view::npos;
        switch (level) {
            case GGML_LOG_LEVEL_ERROR: return 40;
            case GGML_LOG_LEVEL_WARN: return chosen ? 10 : 30;
            // Upstream's "info" is what a developer of upstream wants to see.
            default: return 10;
        }
    }

    std::mutex mutex_;
    std::deque<LogRecord> records_;
    std::uint64_t n_added_ = 0;
};

// Never destroyed: it outlives every static destructor that may still log.
std::atomic<LogRing *> & current_ring() {
    static std::atomic<LogRing *> ring{new LogRing};
    return ring;
}

LogRing & log_ring() {
    return *current_ring();
}

// Another thread of the parent may have been writing: its lock would never be released in the child.
extern "C" void renew_ring() {
    current_ring() = new LogRing;
}

extern "C" void add_to_ring(ggml_log_level level, const char * text, void *) {
    try {
        log_ring().add(level, text);
    } catch (...) {  // a lost line is better than an exception in a C frame
    }
}

std::string kind_of(ggml_backend_dev_t device) {
    switch (ggml_backend_dev_type(device)) {
        case GGML_BACKEND_DEVICE_TYPE_CPU: return "cpu";
        case GGML_BACKEND_DEVICE_TYPE_ACCEL: return "accel";
        default: return "gpu";
    }
}

bool is_module(const std::filesystem::path & file, const std::string & prefix) {
    const std::string name = file.stem().string();
    const std::string extension = file.extension().string();
    return name.rfind(prefix, 0) == 0 && (extension == ".so" || extension == ".dylib" || extension == ".dll");
}

std::vector<std::filesystem::path> modules_in(const std::filesystem::path & folder) {
    std::vector<std::filesystem::path> modules;
    std::error_code failure;
    for (const auto & entry : std::filesystem::directory_iterator(folder, failure)) {
        if (is_module(entry.path(), "libggml-") || is_module(entry.path(), "ggml-")) {
            modules.push_back(entry.path());
        }
    }
    std::sort(modules.begin(), modules.end());
    return modules;
}

bool is_cpu_module(const std::filesystem::path & file) {
    return is_module(file, "libggml-cpu") || is_module(file, "ggml-cpu");
}

// How well a CPU module fits this machine, by its own word; 0 where it does not run here.
int score_of(const std::filesystem::path & file) {
    void * module = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (module == nullptr) {
        return 0;
    }
    const auto score = reinterpret_cast<int (*)()>(dlsym(module, "ggml_backend_score"));
    const int found = score == nullptr ? 1 : score();
    dlclose(module);
    return found;
}

// Upstream's own choice would also load whatever GGML_BACKEND_PATH names, for this ggml or another.
void load_best_cpu(const std::filesystem::path & folder) {
    std::filesystem::path best;
    int best_score = 0;
    for (const auto & file : modules_in(folder)) {
        const int score = is_cpu_module(file) ? score_of(file) : 0;
        if (score > best_score) {
            best = file;
            best_score = score;
        }
    }
    if (best_score == 0 || ggml_backend_load(best.string().c_str()) == nullptr) {
        throw Error(
            ErrorKind::device,
            "load: " + folder.string() + ": no CPU module there runs on this machine. Reinstall phiggml from source.");
    }
}

void load_cpu(const std::filesystem::path & folder, const std::string & variant) {
    if (variant.empty()) {
        load_best_cpu(folder);
        return;
    }
    for (const auto & file : modules_in(folder)) {
        const std::string stem = file.stem().string();
        const std::string ending = "ggml-cpu-" + variant;
        if (is_cpu_module(file) && stem.size() >= ending.size() &&
            stem.compare(stem.size() - ending.size(), ending.size(), ending) == 0) {
            if (ggml_backend_load(file.string().c_str()) != nullptr) {
                return;
            }
        }
    }
    throw Error(ErrorKind::device, "load: PHIGGML_CPU_VARIANT=" + variant + ": no such CPU module loads from " +
                                       folder.string() + ". Unset it to let the best one be chosen.");
}

// Another ggml that the whole process sees would be used by our libraries, in the place of their own.
void check_own_ggml(const std::string & operation) {
    Dl_info found{};
    const void * first = dlsym(RTLD_DEFAULT, "ggml_log_set");
    if (first == nullptr || dladdr(first, &found) == 0 || found.dli_fname == nullptr) {
        return;
    }
    const std::string file = found.dli_fname;
    if (file.find("phiggml-ggml-base") == std::string::npos) {
        throw Error(
            ErrorKind::device,
            operation + ": " + file +
                ": its ggml stands before phiggml's own in this process: it was loaded with RTLD_GLOBAL, or the "
                "program links it. Load it with RTLD_LOCAL, which is the default.");
    }
}

}  // namespace

void capture_log() {
    check_own_ggml("import");
    pthread_atfork(nullptr, nullptr, renew_ring);
    ggml_log_set(add_to_ring, nullptr);
    llama_log_set(add_to_ring, nullptr);
}

void log_debug(const std::string & text) {
    log_ring().add(GGML_LOG_LEVEL_DEBUG, text.c_str());
}

std::vector<LogRecord> take_log() {
    return log_ring().take();
}

LogMark::LogMark() : position_(log_ring().position()) {}

bool LogMark::has_error() const {
    return has_error_with("");
}

bool LogMark::has_error_with(const std::string & words) const {
    return !log_ring().first_error_since(position_, words).empty();
}

std::string LogMark::first_error() const {
    std::string text = log_ring().first_error_since(position_);
    while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) {
        text.pop_back();
    }
    if (text.empty()) {
        return "it does not say why.";
    }
    return text.back() == '.' ? text : text + ".";
}

void LogMark::reword(const std::function<std::string(std::string)> & words) const {
    log_ring().change_since(position_, [&](LogRecord & record) { record.text = words(std::move(record.text)); });
}

void LogMark::quieten() const {
    log_ring().change_since(position_, [](LogRecord & record) { record.level = 10; });
}

void load_backends(const std::string & folder, const std::string & cpu_variant) {
    static std::mutex mutex;
    static bool loaded = false;
    const std::lock_guard<std::mutex> lock(mutex);
    if (loaded) {
        return;
    }
    check_own_ggml("load");
    // Upstream loads whatever lies in the current directory once it finds no backend registered: ours come first.
    load_cpu(folder, cpu_variant);
    for (const auto & file : modules_in(folder)) {
        if (!is_cpu_module(file)) {
            ggml_backend_load(file.string().c_str());  // a driver that is missing is no fault: the log says why
        }
    }
    llama_backend_init();
    loaded = true;
}

LoadedBackend load_backend(const std::string & path) {
    const LogMark mark;
    const ggml_backend_reg_t reg = ggml_backend_load(path.c_str());
    const bool complains = reg == nullptr || mark.has_error();
    return {reg != nullptr, reg == nullptr ? 0 : ggml_backend_reg_dev_count(reg), complains ? mark.first_error() : ""};
}

std::string build_id() {
    return PHIGGML_BUILD_ID;
}

std::vector<DeviceInfo> list_devices() {
    std::vector<DeviceInfo> devices;
    for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        std::size_t free = 0;
        std::size_t total = 0;
        ggml_backend_dev_memory(device, &free, &total);
        devices.push_back({ggml_backend_dev_name(device), ggml_backend_dev_description(device),
                           ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)), kind_of(device), total, free});
    }
    return devices;
}

std::vector<std::pair<std::string, std::string>> versions() {
    return {{"llama.cpp", PHIGGML_LLAMA_BUILD}, {"ggml", ggml_version()}};
}

std::string cpu_module() {
    const ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device == nullptr) {
        return "";
    }
    const void * inside =
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_get_features");
    Dl_info found{};
    return inside != nullptr && dladdr(inside, &found) != 0 && found.dli_fname != nullptr ? found.dli_fname : "";
}

std::vector<std::pair<std::string, std::string>> cpu_features() {
    std::vector<std::pair<std::string, std::string>> features;
    const ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device == nullptr) {
        return features;
    }
    const auto get = reinterpret_cast<ggml_backend_get_features_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_get_features"));
    if (get != nullptr) {
        for (const ggml_backend_feature * feature = get(ggml_backend_dev_backend_reg(device)); feature->name != nullptr;
             ++feature) {
            features.emplace_back(feature->name, feature->value);
        }
    }
    return features;
}

}  // namespace phiggml
