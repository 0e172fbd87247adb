// What happens to threads when the process ends or is forked: none of them may go on inside ggml or enter Python.
#pragma once

#include <cstdint>

namespace phiggml {

// While one exists, its thread is inside ggml or llama.cpp, or in Python on behalf of a call: the process does not end.
class Inside {
public:
    // Once the process ends, waits forever instead, as Python itself makes such threads do from 3.14 on. The thread
    // that ends the process is let in. Call it without the GIL.
    Inside();

    // Never waits.
    enum class Always { yes };
    explicit Inside(Always);

    ~Inside();
    Inside(const Inside &) = delete;
    Inside & operator=(const Inside &) = delete;
};

// Called as the interpreter ends, without the GIL: stops the work of all threads and waits, some seconds at most, until
// nobody is inside.
void shut_down();

// Whether work must stop because the process ends.
bool shutting_down() noexcept;

// Whether shut_down() was called. Threads that ask while they are inside may go on if not: it waits for them.
bool process_ends();

// How often this process was forked off: the threads of what was made before that are gone.
std::uint64_t fork_generation() noexcept;

// Called once, when the module is imported.
void watch_forks();

}  // namespace phiggml
