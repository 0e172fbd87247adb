#include "model.h"

#include <algorithm>
#include <cctype>
#include <limits>
#include <regex>

#include "error.h"
#include "ggml-backend.h"
#include "llama.h"
#include "open_files.h"
#include "runtime.h"
#include "threads.h"

namespace phiggml {

namespace {

ggml_backend_dev_t device_named(const std::string & name) {
    ggml_backend_dev_t device = ggml_backend_dev_by_name(name.c_str());
    if (device == nullptr) {
        std::string present;
        for (const DeviceInfo & info : list_devices()) {
            present += (present.empty() ? "" : ", ") + info.name;
        }
        throw Error(ErrorKind::device, "load: there is no device " + name + ". Present: " + present + ".");
    }
    return device;
}

llama_split_mode split_mode_named(const std::string & name) {
    if (name == "none") {
        return LLAMA_SPLIT_MODE_NONE;
    }
    if (name == "layer") {
        return LLAMA_SPLIT_MODE_LAYER;
    }
    if (name == "row") {
        return LLAMA_SPLIT_MODE_ROW;
    }
    throw Error(ErrorKind::input, "load: split_mode \"" + name + "\" is unknown. Known: none, layer, row.");
}

// Upstream compiles it too, for each tensor, and stops the load without naming it where that fails.
void check_expression(const std::string & pattern) {
    std::string fault;
    try {
        const std::regex expression(pattern);
        if (pattern.find('\0') != std::string::npos) {
            fault = "it holds NUL";
        }
    } catch (const std::regex_error & failure) {
        fault = failure.what();
    }
    if (!fault.empty()) {
        throw Error(ErrorKind::input, "load: tensor_overrides: '" + pattern +
                                          "': llama.cpp cannot take this expression (" + fault +
                                          "). Write it in plainer terms.");
    }
}

// Upstream's parameters with the arrays that they point into.
struct LoadParameters {
    explicit LoadParameters(const ModelSettings & settings) : split(settings.tensor_split) {
        for (const std::string & name : settings.devices) {
            devices.push_back(device_named(name));
        }
        devices.push_back(nullptr);
        for (const auto & [pattern, name] : settings.tensor_overrides) {
            check_expression(pattern);
            overrides.push_back({pattern.c_str(), ggml_backend_dev_buffer_type(device_named(name))});
        }
        overrides.push_back({nullptr, nullptr});
        if (split.size() > llama_max_devices()) {
            throw Error(ErrorKind::input, "load: tensor_split has " + std::to_string(split.size()) +
                                              " entries; at most " + std::to_string(llama_max_devices()) +
                                              " are used.");
        }
        const bool any = std::any_of(split.begin(), split.end(), [](float share) { return share > 0; });
        split.resize(llama_max_devices(), 0);

        parameters = llama_model_default_params();
        // An empty list, not a null one: only devices that were named are used.
        parameters.devices = devices.data();
        parameters.n_gpu_layers = settings.n_gpu_layers;
        parameters.split_mode = split_mode_named(settings.split_mode);
        parameters.tensor_split = any ? split.data() : nullptr;
        parameters.tensor_buft_overrides = settings.tensor_overrides.empty() ? nullptr : overrides.data();
        parameters.load_mode = settings.use_mmap
                                   ? (settings.use_mlock ? LLAMA_LOAD_MODE_MMAP_MLOCK : LLAMA_LOAD_MODE_MMAP)
                                   : (settings.use_mlock ? LLAMA_LOAD_MODE_MLOCK : LLAMA_LOAD_MODE_NONE);
        if (settings.no_alloc) {
            parameters.no_alloc = true;
            parameters.load_mode = LLAMA_LOAD_MODE_NONE;  // upstream asserts that nothing is mapped
        }
    }

    std::vector<ggml_backend_dev_t> devices;
    std::vector<llama_model_tensor_buft_override> overrides;
    std::vector<float> split;
    llama_model_params parameters;
};

llama_model * load_files(const OpenFiles & files, const llama_model_params & parameters) {
    if (files.stream() != nullptr) {
        return llama_model_load_from_file_ptr(files.stream(), parameters);
    }
    std::vector<const char *> names = files.names();
    return llama_model_load_from_splits(names.data(), names.size(), parameters);
}

// A model that a device cannot take, or has no room for, is not a bad one.
void check_devices(const LogMark & mark) {
    const auto says = [&](const char * words) { return mark.has_error_with(words); };
    if (says("does not support split buffers")) {
        throw Error(ErrorKind::device, "load: split_mode \"row\": " + mark.first_error() + " Choose \"layer\".");
    }
    if (says("unable to allocate") || says("out of memory") || says("OutOfDeviceMemory") || says("OutOfHostMemory")) {
        throw Error(ErrorKind::device, "load: a device has no room for its share of the weights: " +
                                           mark.first_error() + " Hold fewer layers there (\"auto\" finds how many).");
    }
}

extern "C" bool report_loading(float share, void * user_data) {
    auto * progress = static_cast<Progress *>(user_data);
    progress->done = static_cast<std::uint64_t>(share * 1000);
    return !progress->stopped();
}

// Many a BPE vocabulary is applied with std::regex, which takes a third of a kilobyte of stack for each character of a
// match (GCC 12; docs/decisions.md). A match is at most one run of white space and one of anything else.
std::size_t stack_for(const llama_vocab * vocabulary, const std::string & text) {
    constexpr std::size_t base = 4 << 20, bytes_each = 2048, shallow = 1000, longest = 1 << 20;
    if (llama_vocab_type(vocabulary) != LLAMA_VOCAB_TYPE_BPE) {
        return 0;
    }
    std::size_t greatest = 0;
    for (std::size_t begin = 0, i = 0; i < text.size(); ++i) {
        const bool changes = (std::isspace(static_cast<unsigned char>(text[i])) == 0) !=
                             (std::isspace(static_cast<unsigned char>(text[begin])) == 0);
        begin = changes ? i : begin;
        greatest = std::max(greatest, i - begin + 1);
    }
    if (greatest > longest) {
        throw Error(ErrorKind::input, "tokenize: the text has " + std::to_string(greatest) +
                                          " bytes of white space, or without any, on end; this vocabulary takes 2^20. "
                                          "Split the text.");
    }
    return greatest < shallow ? 0 : base + greatest * bytes_each;
}

// Upstream asserts that there is one.
void check_vocabulary(const llama_vocab * vocabulary, const char * operation) {
    if (llama_vocab_type(vocabulary) == LLAMA_VOCAB_TYPE_NONE) {
        throw Error(ErrorKind::unsupported,
                    std::string(operation) + ": this model has no vocabulary. Use eval with token ids.");
    }
}

// Upstream asserts that a token which it is to add exists.
void check_special_tokens(const llama_vocab * vocabulary, bool add_special) {
    check_vocabulary(vocabulary, "tokenize");
    // WPM adds the first and the last whatever the file says.
    const bool is_wpm = llama_vocab_type(vocabulary) == LLAMA_VOCAB_TYPE_WPM;
    const bool adds_bos = is_wpm || llama_vocab_get_add_bos(vocabulary);
    const bool no_bos = adds_bos && llama_vocab_bos(vocabulary) == LLAMA_TOKEN_NULL;
    const bool no_eos = llama_vocab_get_add_eos(vocabulary) && llama_vocab_eos(vocabulary) == LLAMA_TOKEN_NULL;
    const bool no_sep = is_wpm && llama_vocab_sep(vocabulary) == LLAMA_TOKEN_NULL;
    if (add_special && (no_bos || no_eos || no_sep)) {
        throw Error::format(
            "tokenize: the model says that a BOS, EOS or SEP token is added but names none. Pass "
            "add_special=False.");
    }
}

void check_tokens(const std::vector<std::int32_t> & tokens) {
    if (std::any_of(tokens.begin(), tokens.end(), [](std::int32_t token) { return token < 0; })) {
        throw Error::format(
            "tokenize: the model's vocabulary has no token for a part of the text, and names no "
            "unknown token. Convert the checkpoint anew.");
    }
}

}  // namespace

void Model::Free::operator()(llama_model * model) const {
    llama_model_free(model);
}

Model::Model(const ModelSettings & settings, Progress & progress) : no_alloc_(settings.no_alloc) {
    LoadParameters load(settings);
    progress.total = 1000;
    load.parameters.progress_callback = report_loading;
    load.parameters.progress_callback_user_data = &progress;
    const OpenFiles files(settings.files);
    const LogMark mark([&](std::string text) { return files.with_paths(std::move(text)); });
    model_.reset(load_files(files, load.parameters));
    if (!model_) {
        if (progress.stopped()) {
            throw Cancelled();
        }
        check_devices(mark);
        throw Error::format("load: llama.cpp refuses this model: " + mark.first_error() +
                            " Convert the checkpoint anew, or see the \"phiggml\" log at level DEBUG.")
            .with_path(settings.path);
    }
    if (const auto unfit = upstream::unfit_weight(*model_)) {
        throw Error(ErrorKind::device, "load: tensor_overrides: " + unfit->device + " cannot take the " +
                                           std::to_string(unfit->n_bytes) + " bytes of " + unfit->name +
                                           " in one piece. Leave it on the CPU.");
    }
    if (!settings.files.empty() && !no_alloc_) {
        tokenizer_ = Tokenizer::make(llama_model_get_vocab(model_.get()), *settings.files[0]);
        end_tokens_ = further_end_tokens(*settings.files[0]);
    }
}

std::vector<std::int32_t> Model::tokenize(const std::string & text, bool add_special, bool parse_special) const {
    if (text.size() > std::size_t{1} << 30) {  // upstream counts in 32 bits
        throw Error(ErrorKind::input, "tokenize: the text has " + std::to_string(text.size()) +
                                          " bytes; at most 2^30 are taken at once. Split it.");
    }
    const llama_vocab * vocabulary = llama_model_get_vocab(model_.get());
    check_special_tokens(vocabulary, add_special);
    return tokenizer_ ? encode(text, add_special, parse_special) : encode_upstream(text, add_special, parse_special);
}

std::vector<std::int32_t> Model::encode(const std::string & text, bool add_special, bool parse_special) const {
    const llama_vocab * vocabulary = llama_model_get_vocab(model_.get());
    std::vector<std::int32_t> tokens = tokenizer_->encode(text, parse_special);
    if (add_special && llama_vocab_get_add_bos(vocabulary)) {
        tokens.insert(tokens.begin(), llama_vocab_bos(vocabulary));
    }
    if (add_special && llama_vocab_get_add_eos(vocabulary)) {
        tokens.push_back(llama_vocab_eos(vocabulary));
    }
    check_tokens(tokens);
    return tokens;
}

std::vector<std::int32_t> Model::encode_upstream(const std::string & text, bool add_special, bool parse_special) const {
    const llama_vocab * vocabulary = llama_model_get_vocab(model_.get());
    const auto size = static_cast<std::int32_t>(text.size());
    std::vector<std::int32_t> tokens(text.size() + 2);
    const auto fill = [&] {
        try {
            return llama_tokenize(vocabulary, text.data(), size, tokens.data(),
                                  static_cast<std::int32_t>(tokens.size()), add_special, parse_special);
        } catch (const std::bad_alloc &) {
            throw;
        } catch (const std::exception & failure) {
            throw Error::format(std::string("tokenize: the model's vocabulary is incomplete: ") + failure.what() +
                                ". Convert the checkpoint anew.");
        }
    };
    std::int32_t n = 0;
    const auto work = [&] {
        n = fill();
        if (n < 0 && n != std::numeric_limits<std::int32_t>::min()) {
            tokens.resize(static_cast<std::size_t>(-n));
            n = fill();
        }
    };
    const std::size_t stack = stack_for(vocabulary, text);
    if (stack > 0) {
        run_on_stack(stack, work);
    } else {
        work();
    }
    if (n < 0) {
        throw Error(ErrorKind::input, "tokenize: the text has too many tokens to count. Split it.");
    }
    tokens.resize(static_cast<std::size_t>(n));
    check_tokens(tokens);
    return tokens;
}

std::string Model::detokenize(const std::vector<std::int32_t> & tokens, bool special) const {
    const llama_vocab * vocabulary = llama_model_get_vocab(model_.get());
    const int n_vocab = llama_vocab_n_tokens(vocabulary);
    constexpr std::size_t most_tokens = 1 << 24;  // upstream counts bytes in 32 bits
    if (tokens.size() > most_tokens) {
        throw Error(ErrorKind::input, "detokenize: there are " + std::to_string(tokens.size()) +
                                          " tokens; at most 2^24 are taken at once. Split them.");
    }
    for (const std::int32_t token : tokens) {
        if (token < 0 || token >= n_vocab) {
            throw Error(ErrorKind::input, "detokenize: token " + std::to_string(token) +
                                              " is not in the vocabulary of " + std::to_string(n_vocab) + ".");
        }
    }
    check_vocabulary(vocabulary, "detokenize");
    if (tokenizer_ && llama_vocab_type(vocabulary) == LLAMA_VOCAB_TYPE_BPE) {
        // Upstream would take spaces away before punctuation.
        std::string text;
        for (const std::int32_t token : tokens) {
            text += piece(token, special);
        }
        return text;
    }
    std::string text(tokens.size() * 8 + 16, '\0');
    const auto fill = [&] {
        return llama_detokenize(vocabulary, tokens.data(), static_cast<std::int32_t>(tokens.size()), text.data(),
                                static_cast<std::int32_t>(text.size()), false, special);
    };
    std::int32_t n = fill();
    if (n < 0) {
        text.resize(static_cast<std::size_t>(-n));
        n = fill();
    }
    text.resize(static_cast<std::size_t>(std::max(n, 0)));
    return text;
}

std::string Model::piece(std::int32_t token, bool special) const {
    const llama_vocab * vocabulary = llama_model_get_vocab(model_.get());
    check_vocabulary(vocabulary, "detokenize");
    std::string text(64, '\0');
    std::int32_t n =
        llama_token_to_piece(vocabulary, token, text.data(), static_cast<std::int32_t>(text.size()), 0, special);
    if (n < 0) {
        text.resize(static_cast<std::size_t>(-n));
        n = llama_token_to_piece(vocabulary, token, text.data(), static_cast<std::int32_t>(text.size()), 0, special);
    }
    text.resize(static_cast<std::size_t>(std::max(n, 0)));
    return text;
}

const TokenPieces & Model::pieces() const {
    std::call_once(pieces_made_, [this] {
        std::vector<std::string> texts(static_cast<std::size_t>(n_vocab()));
        std::vector<std::int32_t> end_tokens;
        for (std::int32_t token = 0; token < n_vocab(); ++token) {
            if (is_end_of_generation(token)) {
                end_tokens.push_back(token);
            } else if (!is_control(token)) {
                texts[static_cast<std::size_t>(token)] = piece(token, false);
            }
        }
        pieces_ = std::make_unique<const TokenPieces>(texts, std::move(end_tokens));
    });
    return *pieces_;
}

bool Model::is_end_of_generation(std::int32_t token) const {
    return end_tokens_.count(token) > 0 || llama_vocab_is_eog(llama_model_get_vocab(model_.get()), token);
}

bool Model::is_control(std::int32_t token) const {
    const llama_vocab * vocabulary = llama_model_get_vocab(model_.get());
    return token >= 0 && token < n_vocab() && llama_vocab_type(vocabulary) != LLAMA_VOCAB_TYPE_NONE &&
           llama_vocab_is_control(vocabulary, token);
}

int Model::n_vocab() const {
    return llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
}
int Model::n_ctx_train() const {
    return llama_model_n_ctx_train(model_.get());
}
int Model::n_layer() const {
    return llama_model_n_layer(model_.get());
}
int Model::n_embd() const {
    return llama_model_n_embd(model_.get());
}
std::uint64_t Model::n_params() const {
    return llama_model_n_params(model_.get());
}
std::uint64_t Model::n_bytes() const {
    return llama_model_size(model_.get());
}
bool Model::has_vocabulary() const {
    return llama_vocab_type(llama_model_get_vocab(model_.get())) != LLAMA_VOCAB_TYPE_NONE;
}
bool Model::has_decoder() const {
    return llama_model_has_decoder(model_.get()) && !llama_model_has_encoder(model_.get());
}

bool Model::looks_ahead() const {
    const auto metadata = [this](const std::string & key) {
        std::string value(128, '\0');
        const std::int32_t n = llama_model_meta_val_str(model_.get(), key.c_str(), value.data(), value.size());
        value.resize(static_cast<std::size_t>(std::clamp(n, 0, 127)));
        return value;
    };
    return metadata(metadata("general.architecture") + ".attention.causal") == "false";
}

std::string Model::description() const {
    std::string text(256, '\0');
    const std::int32_t n = llama_model_desc(model_.get(), text.data(), text.size());
    text.resize(static_cast<std::size_t>(std::clamp(n, 0, 255)));
    return text;
}

std::vector<upstream::TensorPlace> Model::placement() const {
    return upstream::tensor_places(*model_);
}

}  // namespace phiggml
