// What the process has: backends loaded by explicit path, their devices, and upstream's log.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace phiggml {

struct DeviceInfo {
    std::string name;
    std::string description;
    std::string backend;
    std::string kind;  // "cpu", "gpu" or "accel"
    std::uint64_t memory_total;
    std::uint64_t memory_free;
};

struct LogRecord {
    int level;  // as Python's logging counts: 10 debug ... 40 error
    std::string text;
};

// Sends upstream's log into the ring instead of stderr. Called once, when the module is imported.
void capture_log();

// Puts a line of our own among upstream's.
void log_debug(const std::string & text);

// Takes what the ring holds. Old lines fall out when nobody takes them.
std::vector<LogRecord> take_log();

// While one exists, it hears what upstream says on its thread, to tell afterwards what that complained of. Other
// threads have marks of their own, and take lines out of the ring as they like.
class LogMark {
public:
    using Words = std::function<std::string(std::string)>;
    using Expected = std::function<bool()>;

    // `words` puts each line into other words. What upstream says while `expected` holds, as of work that was called
    // off, is logged at level debug.
    explicit LogMark(Words words = nullptr, Expected expected = nullptr);
    ~LogMark();
    LogMark(const LogMark &) = delete;
    LogMark & operator=(const LogMark &) = delete;

    bool has_error() const { return !errors_.empty(); }
    bool has_error_with(const std::string & words) const;
    std::string first_error() const;  // a sentence; what follows a first error mostly repeats it

    // Throws Error::device where upstream did not get the memory of a device that is no CPU. The remedy takes no stop.
    void check_device_memory(const std::string & operation, const std::string & remedy) const;

    // A line as a mark and those around it put it.
    static std::string heard(LogMark * mark, bool is_error, std::string text);
    static bool is_expected(const LogMark * mark);

private:
    Words words_;
    Expected expected_;
    LogMark * outer_;
    std::vector<std::string> errors_;
};

// Loads the CPU module and every other backend module in `folder`, once; later calls do nothing. `cpu_variant`
// names one CPU module ("haswell"), or is empty for the one that fits best. Nothing outside `folder` is looked at.
void load_backends(const std::string & folder, const std::string & cpu_variant);

// Whether all segments of a shared library are in its file. The system's loader maps what is missing, and the process
// dies of SIGBUS when it looks there.
bool is_whole(const std::string & library);

struct LoadedBackend {
    bool loaded;
    std::size_t n_devices;
    std::string complaint;  // upstream's first error while loading; nothing if there was none
};

// Loads a backend module by its path.
LoadedBackend load_backend(const std::string & path);

// What a backend module must have been built with to be loaded here.
std::string build_id();

std::vector<DeviceInfo> list_devices();

// What is compiled in: {"llama.cpp", "b11549"}, {"ggml", "0.26.0"}.
std::vector<std::pair<std::string, std::string>> versions();

// The file of the loaded CPU module; nothing where the system does not tell.
std::string cpu_module();

// What the loaded CPU module was compiled for: {"AVX2", "1"}, ...
std::vector<std::pair<std::string, std::string>> cpu_features();

}  // namespace phiggml
