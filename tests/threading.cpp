// What threads do at once, without Python, whose lock would put much of it in order: for the thread sanitizer, built
// and run by `make tsan`. Prints a line for each part; a failed check ends it with 1.
//
//     threading LIBRARIES MODEL.gguf
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "error.h"
#include "gguf.h"
#include "mapped_file.h"
#include "model.h"
#include "quant.h"
#include "runtime.h"
#include "session.h"
#include "shutdown.h"
#include "threads.h"
#include "token_pieces.h"
#include "value_rows.h"

using namespace phiggml;

namespace {

void require(bool holds, const char * what) {
    if (!holds) {
        std::fprintf(stderr, "threading: it does not hold that %s\n", what);
        std::exit(1);
    }
}

// Calls work(i) on n threads, which begin together.
void together(int n, const std::function<void(int)> & work) {
    std::atomic<int> n_waiting{0};
    std::vector<std::thread> threads;
    threads.reserve(static_cast<std::size_t>(n));
    for (int i = 0; i < n; ++i) {
        threads.emplace_back([&, i] {
            for (++n_waiting; n_waiting < n;) {
                std::this_thread::yield();
            }
            const Inside inside;
            work(i);
        });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
}

std::shared_ptr<Model> load(const std::string & path) {
    ModelSettings settings;
    settings.path = path;
    settings.files = {std::make_shared<GgufFile>(MappedFile::open(path))};
    Progress progress;
    return std::make_shared<Model>(settings, progress);
}

SessionSettings session_settings(int threads) {
    SessionSettings settings;
    settings.n_ctx = 512;
    settings.n_batch = 512;
    settings.threads = threads;
    return settings;
}

// Whether a call was refused because of another thread.
bool refused(const std::function<void()> & call) {
    try {
        call();
    } catch (const Error & error) {
        require(error.kind() == ErrorKind::session, "only sessions refuse here");
        return true;
    } catch (const Cancelled &) {
        return true;
    }
    return false;
}

void backends(const std::string & folder) {
    together(4, [&](int) {
        load_backends(folder, "");
        require(!list_devices().empty() && !cpu_module().empty(), "there is a device");
    });
}

void log_lines() {
    std::atomic<int> n_taken{0};
    together(4, [&](int i) {
        for (int n = 0; n < 500; ++n) {
            if (i < 2) {
                const LogMark mark;
                log_debug("line\n");
                require(!mark.has_error(), "a mark hears errors only");
            } else {
                n_taken += static_cast<int>(take_log().size());
            }
        }
    });
    require(n_taken + static_cast<int>(take_log().size()) >= 1000, "no line is lost");
}

void arrays() {
    constexpr std::int64_t n_rows = 8, n_per_row = 512;
    const std::vector<float> values(n_rows * n_per_row, 0.5F), importances(n_per_row, 1.0F);
    const int types[] = {12, 18, 29};  // Q4_K, IQ3_XXS, IQ1_M
    together(4, [&](int) {
        for (const int type : types) {
            std::vector<std::uint8_t> out(values.size());
            QuantizeSettings settings;
            settings.type = type;
            settings.imatrix = importances.data();
            settings.threads = 3;
            Progress progress;
            const ValueRows rows(values.data(), ValueKind::float32, {n_rows, n_per_row}, {4 * n_per_row, 4});
            quantize_rows(rows, settings, out.data(), progress);
        }
    });
}

void pieces_of_work() {
    together(3, [](int) {
        Progress progress;
        std::atomic<std::uint64_t> sum{0};
        share_pieces(1000, 3, progress, [&](std::uint64_t n) { sum += n; });
        require(sum == 499500, "each piece is done once");
        bool cancelled = false;
        try {
            share_pieces(1000, 3, progress, [&](std::uint64_t n) { progress.cancelled = n > 10; });
        } catch (const Cancelled &) {
            cancelled = true;
        }
        require(cancelled, "what is cancelled ends");
    });
}

void models(const std::string & path, const std::shared_ptr<Model> & model) {
    const std::vector<std::int32_t> truth = model->tokenize("What is GGUF?", true, false);
    together(4, [&](int i) {
        const std::shared_ptr<Model> own = i % 2 == 0 ? model : load(path);
        require(own->tokenize("What is GGUF?", true, false) == truth, "a text has the same tokens everywhere");
        require(!own->detokenize(truth, false).empty(), "tokens have a text");
        static_cast<void>(own->pieces());
        static_cast<void>(own->placement());
    });
}

void sessions(const std::shared_ptr<Model> & model) {
    const std::vector<std::int32_t> tokens(200, 5);
    std::vector<std::vector<float>> found(4);
    together(4, [&](int i) {
        Session session(model, session_settings(1));
        const Session::Use use(session);
        Progress progress;
        found[static_cast<std::size_t>(i)] = session.eval(tokens, {199}, 0, progress);
    });
    for (const std::vector<float> & logits : found) {
        require(logits == found[0] && !logits.empty(), "sessions of one model agree");
    }
}

// One thread evaluates; the others ask, reset, cancel and at last close.
void one_session(const std::shared_ptr<Model> & model, int threads) {
    Session session(model, session_settings(threads));
    const std::vector<std::int32_t> tokens(300, 5);
    std::atomic<int> n_refused{0};
    std::atomic<bool> done{false};
    together(4, [&](int i) {
        for (int n = 0; i == 0 && n < 10; ++n) {
            n_refused += refused([&] { session.allow(); });
            n_refused += refused([&] {
                const Session::Use use(session);
                session.truncate(0, 0);
                Progress progress;
                session.eval(tokens, {299}, 0, progress);
            });
        }
        done = done || i == 0;
        while (!done) {
            n_refused += refused([&] { static_cast<void>(session.tokens(0)); });
            n_refused += refused([&] { session.reset(); });
            static_cast<void>(session.closed() || session.cancelled());
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
            if (i == 3) {
                session.cancel();
            }
        }
        n_refused += refused([&] { session.close(); });
    });
    require(n_refused > 0, "somebody is refused");
    while (refused([&] { session.close(); })) {
    }
    require(session.closed(), "it is closed at the end");
}

// A session that is at work when the process ends.
void ending(const std::shared_ptr<Model> & model) {
    Session session(model, session_settings(1));
    std::atomic<bool> begun{false};
    std::thread worker([&] {
        refused([&] {
            const Inside inside;
            const Session::Use use(session);
            Progress progress;
            begun = true;
            while (true) {
                session.truncate(0, 0);
                session.eval(std::vector<std::int32_t>(300, 5), {299}, 0, progress);
            }
        });
    });
    while (!begun) {
        std::this_thread::yield();
    }
    shut_down();
    worker.join();
}

}  // namespace

int main(int argc, char ** argv) {
    require(argc == 3, "there are two arguments");
    const std::string folder = argv[1], path = argv[2];
    capture_log();
    watch_forks();
    const auto part = [](const char * name, const std::function<void()> & work) {
        work();
        std::printf("%s\n", name);
    };
    part("backends", [&] { backends(folder); });
    part("log", [] { log_lines(); });
    part("arrays", [] { arrays(); });
    part("pieces", [] { pieces_of_work(); });
    const std::shared_ptr<Model> model = load(path);
    part("models", [&] { models(path, model); });
    part("sessions", [&] { sessions(model); });
    part("one session", [&] { one_session(model, 1); });
    part("one session with threads", [&] { one_session(model, 2); });
    part("ending", [&] { ending(model); });
    return 0;
}
