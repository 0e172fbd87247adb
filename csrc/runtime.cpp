#include "runtime.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <regex>
#include <string_view>

#include "error.h"
#include "ggml-backend.h"
#include "llama.h"

namespace phiggml {

namespace {

class LogRing {
public:
    void add(ggml_log_level level, const std::string & text) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (level == GGML_LOG_LEVEL_CONT && !records_.empty()) {
            records_.back().text += text;
            return;
        }
        records_.push_back({python_level(level, text), text});
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

private:
    static constexpr std::size_t capacity = 4096;

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

// The innermost one of this thread.
thread_local LogMark * current_mark = nullptr;

extern "C" void add_to_ring(ggml_log_level level, const char * text, void *) {
    try {
        std::string line = LogMark::heard(current_mark, level == GGML_LOG_LEVEL_ERROR, text);
        const bool quiet = LogMark::is_expected(current_mark) && level != GGML_LOG_LEVEL_CONT;
        log_ring().add(quiet ? GGML_LOG_LEVEL_DEBUG : level, std::move(line));
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

void check_whole(const std::filesystem::path & cpu_module) {
    if (!is_whole(cpu_module.string())) {
        throw Error(ErrorKind::device,
                    "load: " + cpu_module.string() + ": this CPU module is cut off. Reinstall phiggml.");
    }
}

// How well a CPU module fits this machine, by its own word; 0 where it does not run here.
int score_of(const std::filesystem::path & file) {
    check_whole(file);
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
            check_whole(file);
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
    log_ring().add(GGML_LOG_LEVEL_DEBUG, text);
}

std::vector<LogRecord> take_log() {
    return log_ring().take();
}

LogMark::LogMark(Words words, Expected expected)
    : words_(std::move(words)), expected_(std::move(expected)), outer_(current_mark) {
    current_mark = this;
}

LogMark::~LogMark() {
    current_mark = outer_;
}

std::string LogMark::heard(LogMark * mark, bool is_error, std::string text) {
    for (; mark != nullptr; mark = mark->outer_) {
        text = mark->words_ ? mark->words_(std::move(text)) : text;
        constexpr std::size_t most_errors = 64;
        if (is_error && mark->errors_.size() < most_errors) {
            mark->errors_.push_back(text);
        }
    }
    return text;
}

bool LogMark::is_expected(const LogMark * mark) {
    for (; mark != nullptr; mark = mark->outer_) {
        if (mark->expected_ && mark->expected_()) {
            return true;
        }
    }
    return false;
}

bool LogMark::has_error_with(const std::string & words) const {
    const auto holds = [&](const std::string & error) { return error.find(words) != std::string::npos; };
    return std::any_of(errors_.begin(), errors_.end(), holds);
}

std::string LogMark::first_error() const {
    std::string text = errors_.empty() ? "" : errors_.front();
    while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) {
        text.pop_back();
    }
    if (text.empty()) {
        return "it does not say why.";
    }
    return text.back() == '.' ? text : text + ".";
}

namespace {

// The device whose memory goes by this name, or nothing: the CPU, its memory for a GPU, or nobody.
ggml_backend_dev_t device_of_buffers(const std::string & name) {
    for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(device);
        if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU && !ggml_backend_buft_is_host(type) &&
            name == ggml_backend_buft_name(type)) {
            return device;
        }
    }
    return nullptr;
}

}  // namespace

void LogMark::check_device_memory(const std::string & operation, const std::string & remedy) const {
    static const std::regex complaint("failed to allocate (\\S+) buffer of size (\\d{1,19})");
    constexpr std::uint64_t megabyte = 1000000;
    for (const std::string & error : errors_) {
        std::smatch found;
        if (!std::regex_search(error, found, complaint)) {
            continue;
        }
        if (const ggml_backend_dev_t device = device_of_buffers(found[1])) {
            const std::uint64_t n_megabytes = (std::stoull(found[2]) + megabyte - 1) / megabyte;
            throw Error(ErrorKind::device, operation + ": " + ggml_backend_dev_name(device) + " has no room for " +
                                               std::to_string(n_megabytes) + " MB of the context. " + remedy + ".");
        }
    }
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
        if (is_cpu_module(file)) {
            continue;
        }
        if (is_whole(file.string())) {
            ggml_backend_load(file.string().c_str());  // a driver that is missing is no fault: the log says why
        } else {
            log_ring().add(GGML_LOG_LEVEL_ERROR, "load: " + file.string() + ": it is cut off.\n");
        }
    }
    llama_backend_init();
    loaded = true;
}

// System V ABI, "ELF Header" and "Program Header", of 64 bits and little-endian.
bool is_whole(const std::string & library) {
    constexpr char elf64_little[] = {0x7f, 'E', 'L', 'F', 2, 1};
    constexpr std::size_t header_bytes = 64, segment_bytes = 56;
    std::ifstream file(library, std::ios::binary | std::ios::ate);
    const auto n_bytes = static_cast<std::uint64_t>(std::max<std::streamoff>(file.tellg(), 0));
    char header[header_bytes];
    if (!file.seekg(0).read(header, header_bytes) || std::memcmp(header, elf64_little, sizeof elf64_little) != 0) {
        return true;  // the loader says what it thinks of anything else
    }
    const auto number = [](const char * bytes, std::size_t n) {
        std::uint64_t value = 0;
        while (n-- > 0) {
            value = value << 8 | static_cast<unsigned char>(bytes[n]);
        }
        return value;
    };
    if (number(header + 54, 2) != segment_bytes || !file.seekg(static_cast<std::streamoff>(number(header + 32, 8)))) {
        return false;
    }
    char segment[segment_bytes];
    for (std::uint64_t n_left = number(header + 56, 2); n_left > 0; --n_left) {
        if (!file.read(segment, segment_bytes)) {
            return false;
        }
        const std::uint64_t start = number(segment + 8, 8), size = number(segment + 32, 8);
        if (start > n_bytes || size > n_bytes - start) {
            return false;
        }
    }
    return true;
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
