// What phi3 and phimoe read from a file beyond what upstream reads for every architecture, and what is assumed where
// the file of somebody else does not say it.
#pragma once

struct llama_hparams;
struct llama_model_loader;

namespace phiggml::arch {

// Reads what both have: epsilon, sliding window, original context; corrects the types of chat markers, which the
// vocabulary reads next.
void load_phi_hyperparameters(llama_model_loader & loader, llama_hparams & hparams);

// Likewise what phimoe has more: attention factors of both sides, and the router's jitter.
void load_phimoe_hyperparameters(llama_model_loader & loader, llama_hparams & hparams);

// The attention factor beyond the line of long rope, in units of the one within.
float attn_factor_ratio(const llama_hparams & hparams);

// Half the relative distance within which the router takes scores for equal.
float router_jitter(const llama_hparams & hparams);

}  // namespace phiggml::arch
