"""The CUDA 13 backend of phiggml, which finds it by its entry point."""
