// Marks what our files in the llama library export.
#pragma once

#if defined(_WIN32)
#if defined(LLAMA_BUILD)
#define PHIGGML_UPSTREAM_API __declspec(dllexport)
#else
#define PHIGGML_UPSTREAM_API __declspec(dllimport)
#endif
#else
#define PHIGGML_UPSTREAM_API __attribute__((visibility("default")))
#endif
