// Threads that live as long as the process and lend a hand to whoever has work.
#pragma once

#include <functional>

namespace phiggml {

// Calls work() on this thread, and on up to n_extra others that are idle or can be started, at the same time; returns
// once all that began have ended, and calls meanwhile() now and then while it waits for that. Any number of threads may
// call it at once. Neither function may throw.
void work_together(int n_extra, const std::function<void()> & work, const std::function<void()> & meanwhile);

}  // namespace phiggml
