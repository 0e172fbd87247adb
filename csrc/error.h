// The one exception that our C++ throws; bind_error.cpp maps each kind to its Python class.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <utility>

namespace phiggml {

enum class ErrorKind {
    input,        // the call is wrong: shape, dtype, range, unknown name
    format,       // the bytes are no valid file; may carry path and offset
    unsupported,  // valid, but not done here
    device,       // backend absent, out of memory, driver refused
    session,      // context full, closed, used from two threads, decode failed
    system,       // the operating system refused; carries errno
};

class Error : public std::exception {
public:
    Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}

    static Error format(std::string message, std::optional<std::uint64_t> offset = std::nullopt) {
        Error error(ErrorKind::format, std::move(message));
        error.offset_ = offset;
        return error;
    }

    static Error system(int code, std::string path) {
        Error error(ErrorKind::system, "operating system error");
        error.code_ = code;
        error.path_ = std::move(path);
        return error;
    }

    Error & with_path(std::string path) {
        path_ = std::move(path);
        return *this;
    }

    ErrorKind kind() const noexcept { return kind_; }
    const char * what() const noexcept override { return message_.c_str(); }
    const std::string & message() const noexcept { return message_; }
    const std::string & path() const noexcept { return path_; }
    std::optional<std::uint64_t> offset() const noexcept { return offset_; }
    int code() const noexcept { return code_; }

private:
    ErrorKind kind_;
    std::string message_;
    std::string path_;
    std::optional<std::uint64_t> offset_;
    int code_ = 0;
};

}  // namespace phiggml
