"""The ROCm backend of phiggml, which finds it by its entry point."""
