#include "kernels/iq3_lists.h"

#include <cstdlib>

#include "kernels/made_once.h"
#include "upstream/ggml_quants.h"

namespace phiggml::kernels::PHIGGML_ISA::iq3 {
namespace {

int level_in_code(int code, int i) {
    return code >> (3 * i) & 7;
}

int level_in_word(std::int32_t word, int i) {
    return word >> (4 * i) & 7;
}

// Whether no coordinate of `point` is nearer than that of `rival` to a number that rounds to the code's level.
bool is_beaten(std::int32_t point, std::int32_t rival, int code) {
    for (int i = 0; i < dims; ++i) {
        const int a = level_in_word(point, i), b = level_in_word(rival, i), rounded = level_in_code(code, i);
        // The number lies below the middle between two levels above it, and above that of two below.
        const bool beaten = a == b || (a > b && a + b > 2 * rounded) || (a < b && a + b < 2 * rounded);
        if (!beaten) {
            return false;
        }
    }
    return true;
}

std::int32_t word_of(const phiggml_lattice & lattice, int place) {
    const auto * point = static_cast<const std::int8_t *>(lattice.grid) + dims * place;
    std::int32_t word = place << place_shift;
    for (int i = 0; i < dims; ++i) {
        word |= (point[i] - 1) / 2 << (4 * i);
    }
    return word;
}

// Writes the words of all points that ggml looks at for a code; returns their number.
int list_all(const phiggml_lattice & lattice, int code, std::int32_t * words) {
    const int place = lattice.map[code];
    if (place >= 0) {
        words[0] = word_of(lattice, place) | on_grid;
        return 1;
    }
    const std::uint16_t * list = lattice.neighbours - place - 1;
    if (list[0] > longest_list) {
        std::abort();  // a lattice that this was not written for
    }
    for (int j = 0; j < list[0]; ++j) {
        words[j] = word_of(lattice, list[1 + j]);
    }
    return list[0];
}

void fill_row(const std::int32_t * words, int n_words, int code, std::int32_t * row) {
    int n = 0;
    for (int j = 0; j < n_words; ++j) {
        bool beaten = false;
        for (int k = 0; k < j && !beaten; ++k) {
            beaten = is_beaten(words[j], words[k], code);
        }
        if (!beaten && n < longest_row) {
            row[n] = words[j];
        }
        n += beaten ? 0 : 1;
    }
    for (int j = n; j < longest_row; ++j) {
        row[j] = row[0];
    }
    row[0] |= (n > 8 ? more_than_8 : 0) | (n > longest_row ? out_of_lists : 0);
}

struct MadeLists : Lists {
    explicit MadeLists(ggml_type type) {
        const phiggml_lattice lattice = phiggml_lattice_of(type);
        int end = 0;
        for (int code = 0; code < n_codes; ++code) {
            std::int32_t words[longest_list];
            const int n = list_all(lattice, code, words);
            fill_row(words, n, code, rows[code]);
            start[code] = end;
            if (end + n + 7 > most_listed) {
                std::abort();
            }
            for (int j = 0; j < (n + 7) / 8 * 8; ++j) {
                listed[end++] = words[j < n ? j : 0];
            }
        }
        start[n_codes] = end;
        zeros = word_of(lattice, lattice.map[0]);
    }
};

}  // namespace

const Lists * lists_of(ggml_type type) {
    static const MadeLists *of_xxs = nullptr, *of_s = nullptr;
    return made_once(type == GGML_TYPE_IQ3_XXS ? of_xxs : of_s,
                     [type] { return new (std::nothrow) const MadeLists(type); });
}

}  // namespace phiggml::kernels::PHIGGML_ISA::iq3
