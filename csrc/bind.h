// The only file that includes pybind11: array checks in our words, and the two ways to call C++ without the GIL.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "error.h"
#include "progress.h"
#include "shutdown.h"

namespace py = pybind11;

namespace phiggml {

// One per noun, called by module.cpp.
void register_error(py::module_ & m);
void register_runtime(py::module_ & m);
void register_quant(py::module_ & m);
void register_gguf(py::module_ & m);
void register_recipe(py::module_ & m);
void register_pipeline(py::module_ & m);
void register_model(py::module_ & m);
void register_grammar(py::module_ & m);
void register_sampling(py::module_ & m);
void register_session(py::module_ & m);
void register_session_state(py::module_ & m);
void register_adapter(py::module_ & m);
void register_embedder(py::module_ & m);
void register_placement(py::module_ & m);
void register_prompt_lookup(py::module_ & m);
void register_text_stream(py::module_ & m);

// A message for people, which may quote bytes of a stranger's file: what is no UTF-8 or cannot be printed is escaped,
// line ends apart.
py::str message_text(std::string_view message);

// Raises InputError unless `array` is C-contiguous with exactly this dtype; the pointer is not written through.
template <typename T>
const T * contiguous_data(const py::array & array, const char * what) {
    if (!py::isinstance<py::array_t<T>>(array)) {
        throw Error(ErrorKind::input, std::string(what) + ": its dtype is " +
                                          py::str(array.dtype()).cast<std::string>() + ", not " +
                                          py::str(py::dtype::of<T>()).cast<std::string>() + ".");
    }
    if (!(array.flags() & py::array::c_style)) {
        throw Error(ErrorKind::input,
                    std::string(what) + ": the array must be C-contiguous. Pass np.ascontiguousarray(...).");
    }
    return static_cast<const T *>(array.data());
}

inline std::vector<std::int32_t> token_vector(const py::array & tokens) {
    const std::int32_t * data = contiguous_data<std::int32_t>(tokens, "tokens");
    return std::vector<std::int32_t>(data, data + tokens.size());
}

// Hands a vector's memory to numpy, which frees it. No copy: numpy would let go of the GIL while it copies, and the
// interpreter may end there (docs/decisions.md).
template <typename T>
py::array_t<T> owned_array(std::vector<T> && values, std::vector<py::ssize_t> shape) {
    auto holder = std::make_unique<std::vector<T>>(std::move(values));
    const T * data = holder->data();
    const py::capsule owner(holder.get(), [](void * pointer) {
        const std::unique_ptr<std::vector<T>> freed(static_cast<std::vector<T> *>(pointer));
    });
    static_cast<void>(holder.release());
    return py::array_t<T>(std::move(shape), data, owner);
}

template <typename T>
T * writable_data(py::array & array, const char * what) {
    contiguous_data<T>(array, what);
    if (!array.writeable()) {
        throw Error(ErrorKind::input, std::string(what) + ": the array is read-only. Pass one that can be written.");
    }
    return static_cast<T *>(array.mutable_data());
}

// Lets go of the GIL and takes it back. pybind11's own lets a thread take it while the interpreter ends, and CPython
// before 3.14 then ends the thread, which unwinds through C++ frames and aborts the process.
class Released {
public:
    Released() : state_(PyEval_SaveThread()) {}
    ~Released() {
        const Inside inside;
        PyEval_RestoreThread(state_);
    }
    Released(const Released &) = delete;
    Released & operator=(const Released &) = delete;

    // Whether a signal's handler raised, such as Ctrl-C's. Takes the GIL for that moment, so call it seldom.
    bool interrupted() {
        PyEval_RestoreThread(state_);
        const bool raised = PyErr_CheckSignals() != 0;
        state_ = PyEval_SaveThread();
        return raised;
    }

private:
    PyThreadState * state_;
};

// Runs `work` once without the GIL, on this thread: for what ends within some tens of milliseconds.
template <typename Work>
auto call_released(Work && work) {
    const Released released;
    const Inside inside;
    return work();
}

// Runs `work` once without the GIL, on this thread, and looks for Ctrl-C when the work looks up. What that raises
// cancels the work, and wins.
template <typename Work>
void call_polled(Progress & progress, Work && work) {
    bool interrupted = false;
    std::exception_ptr failure;
    {
        Released released;
        const Inside inside;
        const auto look = [&] {
            if (!interrupted && !shutting_down()) {
                interrupted = released.interrupted();
                progress.cancelled = progress.cancelled || interrupted;
            }
        };
        const Lookout lookout(look, std::chrono::milliseconds(50));
        progress.lookout = &lookout;
        try {
            work();
        } catch (...) {
            failure = std::current_exception();
        }
        progress.lookout = nullptr;
    }
    if (interrupted) {
        throw py::error_already_set();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

// Runs `work` on another thread while this one waits without the GIL, and every 20 ms looks for Ctrl-C and
// calls on_progress(done, total). Whatever those raise cancels the work, is raised once it has ended, and wins.
template <typename Work>
auto call_watched(Progress & progress, const py::object & on_progress, Work && work) -> std::invoke_result_t<Work> {
    std::unique_ptr<Inside> inside;
    {
        const Released released;
        inside = std::make_unique<Inside>();
    }
    auto future = std::async(std::launch::async, [&work, inside = std::move(inside)]() mutable {
        const std::unique_ptr<Inside> held = std::move(inside);
        return work();
    });
    std::exception_ptr interruption;
    std::uint64_t reported = UINT64_MAX;
    while (true) {
        std::future_status status;
        {
            const Released released;
            status = future.wait_for(std::chrono::milliseconds(20));
        }
        if (!interruption) {
            const Inside in_python(Inside::Always::yes);
            try {
                if (PyErr_CheckSignals() != 0) {
                    throw py::error_already_set();
                }
                const std::uint64_t done = progress.done.load();
                if (!on_progress.is_none() && done != reported) {
                    reported = done;
                    on_progress(done, progress.total.load());
                }
            } catch (...) {
                interruption = std::current_exception();
                progress.cancelled = true;
            }
        }
        if (status == std::future_status::ready) {
            break;
        }
    }
    if (interruption) {
        try {
            future.get();
        } catch (...) {  // the work's own end, Cancelled mostly, gives way to what cancelled it
        }
        std::rethrow_exception(interruption);
    }
    return future.get();
}

}  // namespace phiggml
