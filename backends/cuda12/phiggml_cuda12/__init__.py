"""The CUDA 12 backend of phiggml, which finds it by its entry point."""
