// Holds the vectorised kernels to ggml's own functions, byte for byte, and times the two in turn.
//
//     check_kernels [--isa avx2|avx512] [--type Q4_K] [--rounds N] [--seed N] [--time]
//
// Without --isa every instruction set that runs here is checked. Built by `make check-kernels`, with the address and
// undefined-behaviour sanitizers.
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "ggml.h"
#include "kernels/kernels.h"

namespace phiggml::kernels {
namespace avx2 {
Table make_table();
}
namespace avx512 {
Table make_table();
}
}  // namespace phiggml::kernels

namespace {

using phiggml::kernels::Kernel;
using phiggml::kernels::Table;
using Random = std::mt19937_64;
using Numbers = std::vector<float>;
using Bytes = std::vector<std::uint8_t>;

struct Options {
    std::string isa;
    std::string type;
    int rounds = 20;
    std::uint64_t seed = 1;
    bool time = false;
};

// Fills one row; what is quantized comes in all sizes up to 16384, which is as large as kernels are given.
struct Distribution {
    const char * name;
    std::function<void(float *, std::int64_t, Random &)> fill;
};

void fill_normal(float * row, std::int64_t n, Random & random, float sigma) {
    std::normal_distribution<float> normal(0, sigma);
    std::generate(row, row + n, [&] { return std::clamp(normal(random), -16384.0F, 16384.0F); });
}

float power_of_ten(Random & random, float low, float high) {
    return std::pow(10.0F, std::uniform_real_distribution<float>(low, high)(random));
}

std::vector<Distribution> distributions() {
    return {
        {"normal, 0.02", [](float * row, std::int64_t n, Random & random) { fill_normal(row, n, random, 0.02F); }},
        {"normal, 1e-6 to 1e3", [](float * row, std::int64_t n,
                                   Random & random) { fill_normal(row, n, random, power_of_ten(random, -6, 3)); }},
        {"uniform",
         [](float * row, std::int64_t n, Random & random) {
             std::uniform_real_distribution<float> uniform(random() % 2 ? -1.0F : 0.0F, 1.0F);
             std::generate(row, row + n, [&] { return uniform(random); });
         }},
        {"heavy tails",
         [](float * row, std::int64_t n, Random & random) {
             std::cauchy_distribution<float> cauchy(0, 0.05F);
             std::generate(row, row + n, [&] { return std::clamp(cauchy(random), -16384.0F, 16384.0F); });
         }},
        {"every magnitude",
         [](float * row, std::int64_t n, Random & random) {
             std::generate(row, row + n, [&] { return (random() % 2 ? 1 : -1) * power_of_ten(random, -44, 4.2F); });
         }},
        {"zeros", [](float * row, std::int64_t n, Random &) { std::fill(row, row + n, 0.0F); }},
        {"zeros of both signs",
         [](float * row, std::int64_t n, Random & random) {
             std::generate(row, row + n, [&] { return random() % 2 ? 0.0F : -0.0F; });
         }},
        {"constant",
         [](float * row, std::int64_t n, Random & random) {
             std::fill(row, row + n, (random() % 2 ? 1 : -1) * power_of_ten(random, -20, 4.2F));
         }},
        {"one-hot",
         [](float * row, std::int64_t n, Random & random) {
             std::fill(row, row + n, 0.0F);
             row[random() % static_cast<std::uint64_t>(n)] = (random() % 2 ? 1 : -1) * power_of_ten(random, -20, 4.2F);
         }},
        {"denormals",
         [](float * row, std::int64_t n, Random & random) {
             std::generate(row, row + n, [&] {
                 const std::uint32_t bits = (random() % 2 ? 0x80000000U : 0U) | (random() & 0x7fffffU);
                 float number;
                 std::memcpy(&number, &bits, sizeof number);
                 return number;
             });
         }},
        {"ties",
         [](float * row, std::int64_t n, Random & random) {
             const float step = std::ldexp(1.0F, static_cast<int>(random() % 12) - 10);
             std::generate(row, row + n, [&] { return step * 0.5F * (static_cast<int>(random() % 65) - 32); });
         }},
        {"sub-blocks of one value, or of nothing",
         [](float * row, std::int64_t n, Random & random) {
             float value = 0;
             for (std::int64_t i = 0; i < n; ++i) {
                 if (i % 16 == 0) {
                     value = random() % 3 ? (random() % 2 ? 1 : -1) * power_of_ten(random, -15, 2) : 0.0F;
                 }
                 row[i] = value;
             }
         }},
        {"sub-blocks of one sign and far from zero",
         [](float * row, std::int64_t n, Random & random) {
             float offset = 0;
             std::uniform_real_distribution<float> uniform(0, 1e-3F);
             for (std::int64_t i = 0; i < n; ++i) {
                 if (i % 16 == 0) {
                     offset = random() % 2 ? 1.0F : -1.0F;
                 }
                 row[i] = offset + uniform(random);
             }
         }},
        {"sub-blocks between zeros",
         [](float * row, std::int64_t n, Random & random) {
             fill_normal(row, n, random, 1.0F);
             for (std::int64_t i = 0; i < n; ++i) {
                 row[i] = random() % 4 ? 0.0F : row[i];
             }
         }},
    };
}

// Importances as they come: squares of activations; and as they should not: zeros, one great one, all alike.
Numbers importances(std::int64_t n, Random & random) {
    Numbers weights(static_cast<std::size_t>(n));
    const auto kind = random() % 5;
    for (float & weight : weights) {
        const float normal = std::normal_distribution<float>()(random);
        weight = kind == 0   ? 0.0F
                 : kind == 1 ? 1.0F
                 : kind == 2 ? power_of_ten(random, -12, 12)
                 : kind == 3 ? (random() % 3 ? 0.0F : normal * normal)
                             : normal * normal;
    }
    return weights;
}

std::size_t row_bytes(ggml_type type, std::int64_t n) {
    return ggml_row_size(type, n);
}

// Of exact size, so that a sanitizer sees what reaches beyond.
Bytes quantize(ggml_type type, phiggml::kernels::Quantize kernel, const Numbers & x, std::int64_t n_per_row,
               const Numbers & imatrix) {
    const auto n_rows = static_cast<std::int64_t>(x.size()) / n_per_row;
    Bytes out(static_cast<std::size_t>(n_rows) * row_bytes(type, n_per_row), 0xa5);
    const float * weights = imatrix.empty() ? nullptr : imatrix.data();
    if (kernel != nullptr) {
        kernel(x.data(), out.data(), n_rows, n_per_row, weights);
    } else {
        ggml_quantize_chunk(type, x.data(), out.data(), 0, n_rows, n_per_row, weights);
    }
    return out;
}

bool same_numbers(const Numbers & a, const Numbers & b) {
    for (std::size_t i = 0; i < a.size(); ++i) {
        if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) {
            return false;
        }
    }
    return true;
}

bool check_quantize(ggml_type type, phiggml::kernels::Quantize kernel, bool weighted, const Options & options) {
    Random random(options.seed);
    const std::int64_t block = ggml_blck_size(type);
    const std::int64_t lengths[] = {block, 2 * block, 3 * block, 5 * block, 1024, 4096, 16384};
    for (const Distribution & distribution : distributions()) {
        for (int round = 0; round < options.rounds; ++round) {
            const std::int64_t n = lengths[random() % (round % 10 == 0 ? 7 : 6)] / block * block;
            const std::int64_t n_rows = 1 + static_cast<std::int64_t>(random() % 5);
            Numbers x(static_cast<std::size_t>(n_rows * n));
            for (std::int64_t row = 0; row < n_rows; ++row) {
                distribution.fill(x.data() + row * n, n, random);
            }
            const Numbers weights = weighted ? importances(n, random) : Numbers();
            const Bytes truth = quantize(type, nullptr, x, n, weights);
            const Bytes found = quantize(type, kernel, x, n, weights);
            if (found != truth) {
                const auto at = std::mismatch(found.begin(), found.end(), truth.begin()).first - found.begin();
                const auto bytes = static_cast<std::int64_t>(ggml_type_size(type));
                std::printf("  DIFFERENT: %s, %lld rows of %lld, round %d, from block %lld, byte %lld\n",
                            distribution.name, static_cast<long long>(n_rows), static_cast<long long>(n), round,
                            static_cast<long long>(at / bytes), static_cast<long long>(at % bytes));
                return false;
            }
        }
    }
    return true;
}

bool check_dequantize(ggml_type type, phiggml::kernels::Dequantize kernel, const Options & options) {
    Random random(options.seed);
    const auto block = static_cast<std::size_t>(ggml_blck_size(type));
    for (int round = 0; round < 10 * options.rounds; ++round) {
        const std::size_t n_blocks = 1 + random() % 70;
        Bytes data(n_blocks * ggml_type_size(type));
        std::generate(data.begin(), data.end(), [&] { return static_cast<std::uint8_t>(random()); });
        Numbers truth(n_blocks * block), found(n_blocks * block, 1.0F);
        ggml_get_type_traits(type)->to_float(data.data(), truth.data(), static_cast<std::int64_t>(truth.size()));
        kernel(data.data(), found.data(), static_cast<std::int64_t>(found.size()));
        if (!same_numbers(found, truth)) {
            std::printf("  DIFFERENT: dequantize, round %d\n", round);
            return false;
        }
    }
    return true;
}

double seconds(const std::function<void()> & work) {
    timespec begin{}, end{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
    work();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    return static_cast<double>(end.tv_sec - begin.tv_sec) + 1e-9 * static_cast<double>(end.tv_nsec - begin.tv_nsec);
}

// The median of the ratios of runs taken in turn.
void report_time(std::int64_t n, const std::function<void()> & theirs, const std::function<void()> & ours) {
    ours();
    const double once = seconds(theirs);
    const int rounds = std::clamp(static_cast<int>(1.5 / once), 5, 200);
    std::vector<double> ratios, our_seconds;
    for (int i = 0; i < rounds; ++i) {
        const double their = seconds(theirs);
        our_seconds.push_back(seconds(ours));
        ratios.push_back(their / our_seconds.back());
    }
    std::sort(ratios.begin(), ratios.end());
    std::sort(our_seconds.begin(), our_seconds.end());
    const double per_second = static_cast<double>(n) / our_seconds[our_seconds.size() / 2] / 1e6;
    const double ratio = ratios[ratios.size() / 2];
    std::printf("  %.0f M/s, ggml %.1f M/s, ratio %.2f\n", per_second, per_second / ratio, ratio);
}

void time_quantize(ggml_type type, phiggml::kernels::Quantize kernel, bool weighted) {
    const std::int64_t n_per_row = 4096, n_rows = 16;
    Random random(7);
    Numbers x(static_cast<std::size_t>(n_rows * n_per_row));
    fill_normal(x.data(), n_rows * n_per_row, random, 0.02F);
    Numbers weights(weighted ? n_per_row : 0);
    for (float & weight : weights) {
        const float normal = std::normal_distribution<float>()(random);
        weight = normal * normal;
    }
    Bytes out(static_cast<std::size_t>(n_rows) * row_bytes(type, n_per_row));
    const float * imatrix = weighted ? weights.data() : nullptr;
    report_time(
        n_rows * n_per_row, [&] { ggml_quantize_chunk(type, x.data(), out.data(), 0, n_rows, n_per_row, imatrix); },
        [&] { kernel(x.data(), out.data(), n_rows, n_per_row, imatrix); });
}

void time_dequantize(ggml_type type, phiggml::kernels::Dequantize kernel) {
    const std::int64_t n = 4096 * 16;
    Random random(7);
    Numbers x(static_cast<std::size_t>(n));
    fill_normal(x.data(), n, random, 0.02F);
    const Bytes data = quantize(type, nullptr, x, 4096, Numbers(4096, 1.0F));
    report_time(
        n, [&] { ggml_get_type_traits(type)->to_float(data.data(), x.data(), n); },
        [&] { kernel(data.data(), x.data(), n); });
}

bool check_kernel(const char * isa, ggml_type type, const Kernel & kernel, const Options & options) {
    std::string name = ggml_type_name(type);
    std::transform(name.begin(), name.end(), name.begin(), ::toupper);
    if (!options.type.empty() && options.type != name) {
        return true;
    }
    bool same = true;
    for (const bool weighted : {false, true}) {
        const auto quantize = weighted ? kernel.quantize_weighted : kernel.quantize;
        if (quantize == nullptr) {
            continue;
        }
        std::printf("%s %s%s\n", isa, name.c_str(), weighted ? " with an imatrix" : "");
        ggml_quantize_init(type);
        same = check_quantize(type, quantize, weighted, options) && same;
        if (options.time) {
            time_quantize(type, quantize, weighted);
        }
    }
    if (kernel.dequantize != nullptr) {
        std::printf("%s %s, dequantize\n", isa, name.c_str());
        same = check_dequantize(type, kernel.dequantize, options) && same;
        if (options.time) {
            time_dequantize(type, kernel.dequantize);
        }
    }
    std::fflush(stdout);
    return same;
}

bool check_table(const char * isa, const Table & table, const Options & options) {
    bool same = true;
    for (int id = 0; id < GGML_TYPE_COUNT; ++id) {
        same = check_kernel(isa, static_cast<ggml_type>(id), table.types[id], options) && same;
    }
    return same;
}

Options parse(int argc, char ** argv) {
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        const std::string value = i + 1 < argc ? argv[i + 1] : "";
        if (name == "--time") {
            options.time = true;
            continue;
        }
        ++i;
        if (name == "--isa") {
            options.isa = value;
        } else if (name == "--type") {
            options.type = value;
        } else if (name == "--rounds") {
            options.rounds = std::atoi(value.c_str());
        } else if (name == "--seed") {
            options.seed = static_cast<std::uint64_t>(std::atoll(value.c_str()));
        } else {
            std::fprintf(stderr, "check_kernels: %s is no option\n", name.c_str());
            std::exit(2);
        }
    }
    return options;
}

}  // namespace

int main(int argc, char ** argv) {
    const Options options = parse(argc, argv);
    bool same = true;
    if (options.isa != "avx512" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
        same = check_table("avx2", phiggml::kernels::avx2::make_table(), options) && same;
    }
    if (options.isa != "avx2" && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        same = check_table("avx512", phiggml::kernels::avx512::make_table(), options) && same;
    }
    std::printf(same ? "all bytes are ggml's\n" : "bytes differ\n");
    return same ? 0 : 1;
}
