// Lets upstream open files that are open here already. It takes paths, and what a path leads to may have been replaced
// since the file behind it was checked.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "gguf.h"
#include "mapped_file.h"

namespace phiggml {

class OpenFiles {
public:
    // Throws Error: input when one is not mapped; format when one has been written to since it was parsed, or when
    // there is no other way than by the paths, and these lead to other files by now.
    explicit OpenFiles(const std::vector<std::shared_ptr<GgufFile>> & files);

    // What upstream can open, one for each file; valid as long as this object.
    std::vector<const char *> names() const;

    // The only file as a stream, where it has no name of such a kind; nullptr where names() will do.
    std::FILE * stream() const noexcept { return stream_.get(); }

    // Each name in the text replaced by the path that it stands for.
    std::string with_paths(std::string text) const;

private:
    struct Close {
        void operator()(std::FILE * stream) const { std::fclose(stream); }
    };

    bool name_by_descriptor();
    void open_stream();
    void name_by_path();

    std::vector<std::shared_ptr<const MappedFile>> files_;
    std::vector<std::shared_ptr<void>> still_;  // no editor of ours writes to them
    std::vector<std::string> names_;
    std::unique_ptr<std::FILE, Close> stream_;
};

}  // namespace phiggml
