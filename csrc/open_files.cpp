#include "open_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "error.h"

namespace phiggml {

OpenFiles::OpenFiles(const std::vector<std::shared_ptr<GgufFile>> & files) {
    for (const auto & file : files) {
        files_.push_back(std::dynamic_pointer_cast<const MappedFile>(file->shared_source()));
        if (files_.back() == nullptr) {
            throw Error(ErrorKind::input, "load: " + file->source().name() +
                                              ": llama.cpp loads files of this machine only. Download or write it.");
        }
        still_.push_back(files_.back()->hold_still());
        file->require_unchanged();
    }
    if (name_by_descriptor()) {
        return;
    }
    if (files_.size() == 1) {
        open_stream();
    } else {
        name_by_path();
    }
}

// Linux gives each open file a name, by which it can be opened anew even when it has no other any more.
bool OpenFiles::name_by_descriptor() {
    for (const auto & file : files_) {
        names_.push_back("/proc/self/fd/" + std::to_string(file->descriptor()));
        if (::access(names_.back().c_str(), R_OK) != 0) {
            names_.clear();
            return false;
        }
    }
    return true;
}

void OpenFiles::open_stream() {
    const MappedFile & file = *files_.front();
    const int own = ::fcntl(file.descriptor(), F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
        throw Error::system(errno, file.name());
    }
    stream_.reset(::fdopen(own, "rb"));
    if (!stream_) {
        const int code = errno;
        ::close(own);
        throw Error::system(code, file.name());
    }
    std::rewind(stream_.get());  // the position is shared with the descriptor
}

void OpenFiles::name_by_path() {
    for (const auto & file : files_) {
        struct stat opened{}, named{};
        if (::fstat(file->descriptor(), &opened) != 0 || ::stat(file->name().c_str(), &named) != 0) {
            throw Error::system(errno, file->name());
        }
        if (opened.st_dev != named.st_dev || opened.st_ino != named.st_ino) {
            throw Error::format("load: " + file->name() + ": it was replaced since it was checked. Load it again.")
                .with_path(file->name());
        }
        names_.push_back(file->name());
    }
}

std::vector<const char *> OpenFiles::names() const {
    std::vector<const char *> names;
    for (const std::string & name : names_) {
        names.push_back(name.c_str());
    }
    return names;
}

std::string OpenFiles::with_paths(std::string text) const {
    const auto is_digit = [&](std::size_t i) { return i < text.size() && text[i] >= '0' && text[i] <= '9'; };
    for (std::size_t i = 0; i < names_.size(); ++i) {
        const std::string & name = names_[i];
        const std::string & path = files_[i]->name();
        for (std::size_t at = text.find(name); at != std::string::npos; at = text.find(name, at)) {
            if (is_digit(at + name.size())) {  // /proc/self/fd/12 is not /proc/self/fd/1
                at += name.size();
                continue;
            }
            text.replace(at, name.size(), path);
            at += path.size();
        }
    }
    return text;
}

}  // namespace phiggml
