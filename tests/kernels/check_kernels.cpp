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

// The float so many steps beside a number; zeros and the smallest stay.
float neighbour(float number, int steps) {
    std::int32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    bits += (bits & 0x7fffffff) > 8 ? steps : 0;
    std::memcpy(&number, &bits, sizeof bits);
    return number;
}

// Middles between levels, up to three floats beside them, with the number that the levels follow from.
void fill_beside_ties(float * row, std::int64_t n, Random & random) {
    const int n_levels[] = {1, 3, 4, 7, 8, 15, 16, 31, 32, 63, 127};
    const int most = n_levels[random() % 11];
    const float greatest = power_of_ten(random, -6, 3), step = greatest / static_cast<float>(most);
    std::generate(row, row + n, [&] {
        const auto level = static_cast<float>(static_cast<int>(random() % (2 * most)) - most);
        return neighbour((level + 0.5F) * step, static_cast<int>(random() % 7) - 3);
    });
    for (std::int64_t i = 0; i < n; i += 16) {
        row[i + static_cast<std::int64_t>(random() % 16) % (n - i)] = random() % 2 ? greatest : -greatest;
    }
}

// In each group of 16 some numbers of the same magnitude are greatest, of either sign.
void fill_equally_great(float * row, std::int64_t n, Random & random) {
    fill_normal(row, n, random, 0.3F);
    for (std::int64_t i = 0; i < n; ++i) {
        row[i] = random() % 5 == 0 ? (random() % 2 ? 2.0F : -2.0F) : std::clamp(row[i], -2.0F, 2.0F);
    }
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
        {"beside ties", fill_beside_ties},
        {"several equally great", fill_equally_great},
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

// Importances as they come: squares of activations; and as they should not: zeros, all alike, tiny, one great one, and
// 1e20, as great as kernels are given.
Numbers importances(std::int64_t n, Random & random) {
    Numbers weights(static_cast<std::size_t>(n));
    const auto kind = random() % 7;
    for (float & weight : weights) {
        const float normal = std::normal_distribution<float>()(random);
        weight = kind == 0   ? 0.0F
                 : kind == 1 ? 1.0F
                 : kind == 2 ? power_of_ten(random, -44, 20)
                 : kind == 3 ? (random() % 3 ? 0.0F : normal * normal)
                 : kind == 4 ? normal * normal * 1e-38F
                             : normal * normal;
    }
    if (kind == 5) {
        weights[random() % weights.size()] = 1e20F;
    }
    return weights;
}

std::size_t row_bytes(ggml_type type, std::int64_t n) {
    return ggml_row_size(type, n);
}

struct Case {
    Numbers x;
    std::int64_t n_per_row;
    Numbers imatrix;  // empty: none
};

Bytes quantize_by_ggml(ggml_type type, const Case & of) {
    const auto n_rows = static_cast<std::int64_t>(of.x.size()) / of.n_per_row;
    Bytes out(static_cast<std::size_t>(n_rows) * row_bytes(type, of.n_per_row));
    const float * imatrix = of.imatrix.empty() ? nullptr : of.imatrix.data();
    ggml_quantize_chunk(type, of.x.data(), out.data(), 0, n_rows, of.n_per_row, imatrix);
    return out;
}

// Of exact size, so that a sanitizer sees what reaches beyond, and aligned no more than halves are.
Bytes quantize_by_kernel(ggml_type type, phiggml::kernels::Quantize kernel, const Case & of) {
    const auto n_rows = static_cast<std::int64_t>(of.x.size()) / of.n_per_row;
    Bytes out(2 + static_cast<std::size_t>(n_rows) * row_bytes(type, of.n_per_row), 0xa5);
    kernel(of.x.data(), out.data() + 2, n_rows, of.n_per_row, of.imatrix.empty() ? nullptr : of.imatrix.data());
    if (out[0] != 0xa5 || out[1] != 0xa5) {
        return {};
    }
    out.erase(out.begin(), out.begin() + 2);
    return out;
}

// Whether the bytes are ggml's; says where they are not.
bool same_bytes(ggml_type type, phiggml::kernels::Quantize kernel, const Case & of, const char * name, int round) {
    const Bytes truth = quantize_by_ggml(type, of), found = quantize_by_kernel(type, kernel, of);
    if (found == truth) {
        return true;
    }
    const auto at = std::mismatch(found.begin(), found.end(), truth.begin()).first - found.begin();
    const auto bytes = static_cast<std::int64_t>(ggml_type_size(type));
    std::printf("  DIFFERENT: %s, %lld numbers in rows of %lld, round %d, from block %lld, byte %lld\n", name,
                static_cast<long long>(of.x.size()), static_cast<long long>(of.n_per_row), round,
                static_cast<long long>(at / bytes), static_cast<long long>(at % bytes));
    return false;
}

// What the type makes of the numbers: their levels are clear already, or stand on the edge.
Case quantized_already(ggml_type type, const Case & of) {
    Case result = of;
    const Bytes data = quantize_by_ggml(type, of);
    ggml_get_type_traits(type)->to_float(data.data(), result.x.data(), static_cast<std::int64_t>(result.x.size()));
    for (float & number : result.x) {
        number = std::clamp(number, -16384.0F, 16384.0F);
    }
    return result;
}

bool same_numbers(const Numbers & a, const Numbers & b) {
    for (std::size_t i = 0; i < a.size(); ++i) {
        if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) {
            return false;
        }
    }
    return true;
}

// Rows of all lengths, and now and then many short ones.
Case make_case(const Distribution & distribution, std::int64_t block, bool weighted, int round, Random & random) {
    const std::int64_t lengths[] = {block, 2 * block, 3 * block, 5 * block, 1024, 4096, 16384};
    Case result;
    result.n_per_row = lengths[random() % (round % 10 == 0 ? 7 : 6)] / block * block;
    const std::uint64_t most_rows = result.n_per_row <= 1024 && round % 4 == 1 ? 70 : 5;
    const auto n_rows = 1 + static_cast<std::int64_t>(random() % most_rows);
    result.x.resize(static_cast<std::size_t>(n_rows * result.n_per_row));
    for (std::int64_t row = 0; row < n_rows; ++row) {
        distribution.fill(result.x.data() + row * result.n_per_row, result.n_per_row, random);
    }
    if (weighted) {
        result.imatrix = importances(result.n_per_row, random);
    }
    return result;
}

bool check_quantize(ggml_type type, phiggml::kernels::Quantize kernel, bool weighted, const Options & options) {
    Random random(options.seed);
    for (const Distribution & distribution : distributions()) {
        for (int round = 0; round < options.rounds; ++round) {
            const Case first = make_case(distribution, ggml_blck_size(type), weighted, round, random);
            if (!same_bytes(type, kernel, first, distribution.name, round)) {
                return false;
            }
            if (round % 4 == 2 &&
                !same_bytes(type, kernel, quantized_already(type, first), "quantized already", round)) {
                return false;
            }
        }
    }
    return true;
}

// F16 and BF16 are also what is dequantized rounded to: they take every bit pattern.
bool check_halves(ggml_type type, phiggml::kernels::Quantize kernel, const Options & options) {
    Random random(options.seed);
    Case any{Numbers(70), 70, {}};
    for (int round = 0; round < options.rounds; ++round) {
        for (float & number : any.x) {
            const auto bits = static_cast<std::uint32_t>(random() | (random() % 4 == 0 ? 0x7f800000U : 0U));
            std::memcpy(&number, &bits, sizeof number);
        }
        const std::uint32_t edges[] = {0x7f800000U, 0xff800000U, 0x7fffffffU, 0xffffffffU, 0x7f800001U, 0x7f7fffffU};
        std::memcpy(any.x.data(), edges, sizeof edges);
        if (!same_bytes(type, kernel, any, "every bit pattern", round)) {
            return false;
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
        Bytes shifted(data);  // by no byte or one, to an odd address
        const auto shift = static_cast<std::size_t>(round % 2);
        shifted.insert(shifted.begin(), shift, 0);
        Numbers truth(n_blocks * block), found(n_blocks * block, 1.0F);
        ggml_get_type_traits(type)->to_float(data.data(), truth.data(), static_cast<std::int64_t>(truth.size()));
        kernel(shifted.data() + shift, found.data(), static_cast<std::int64_t>(found.size()));
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
    const Bytes data = quantize_by_ggml(type, {x, 4096, Numbers(4096, 1.0F)});
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
        if (type == GGML_TYPE_F16 || type == GGML_TYPE_BF16) {
            same = check_halves(type, quantize, options) && same;
        }
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

// Of any length, with and without numbers that are none.
bool check_magnitude(const char * isa, const Table & table, const Options & options) {
    std::printf("%s greatest magnitude\n", isa);
    Random random(options.seed);
    for (int round = 0; round < 100 * options.rounds; ++round) {
        Numbers x(random() % 200);
        std::uint32_t truth = 0;
        for (float & number : x) {
            const auto bits = static_cast<std::uint32_t>(random()) & (round % 2 ? 0xbfffffffU : 0xffffffffU);
            truth = std::max(truth, bits & 0x7fffffffU);
            std::memcpy(&number, &bits, sizeof number);
        }
        if (table.greatest_magnitude_bits(x.data(), static_cast<std::int64_t>(x.size())) != truth) {
            std::printf("  DIFFERENT: greatest magnitude of %zu numbers, round %d\n", x.size(), round);
            return false;
        }
    }
    return true;
}

bool check_table(const char * isa, const Table & table, const Options & options) {
    bool same = !options.type.empty() || check_magnitude(isa, table, options);
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
    if (options.isa != "avx2" && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        same = check_table("avx512", phiggml::kernels::avx512::make_table(), options) && same;
    }
    std::printf(same ? "all bytes are ggml's\n" : "bytes differ\n");
    return same ? 0 : 1;
}
