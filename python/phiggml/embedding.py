"""Where other C and C++ extensions find the ggml and llama.cpp that phiggml carries."""

from __future__ import annotations

from phiggml.runtime import library_folder

__all__ = ["get_cmake_dir", "get_include", "get_library_dir"]


def get_include() -> str:
    """The folder of ggml's and llama.cpp's public headers.

    Returns:
        The folder of ggml.h, ggml-backend.h, gguf.h, llama.h and others.

    Source:
        The pinned tree that phiggml was built from.

    Example:
        >>> import os
        >>> import phiggml as pg
        >>> "ggml.h" in os.listdir(pg.get_include())
        True
    """
    return str(library_folder().parent / "include")


def get_library_dir() -> str:
    """The folder of the libraries to link: phiggml-ggml-base, phiggml-ggml, phiggml-llama.

    Their names are phiggml's own, so that another package's ggml is another ggml. Whatever
    links them is imported after phiggml, which has loaded them by then.

    Returns:
        The folder.

    Source:
        The package's own lib folder, beside the compiled module.

    Example:
        >>> import os
        >>> import phiggml as pg
        >>> any("phiggml-ggml-base" in name for name in os.listdir(pg.get_library_dir()))
        True
    """
    return str(library_folder())


def get_cmake_dir() -> str:
    """The folder of the CMake package, for `find_package(phiggml CONFIG PATHS ...)`.

    Returns:
        The folder of phiggmlConfig.cmake, whose targets are phiggml::ggml-base, phiggml::ggml
        and phiggml::llama. examples/embedding uses it.

    Source:
        cmake/phiggmlConfig.cmake.in.

    Example:
        >>> import os
        >>> import phiggml as pg
        >>> "phiggmlConfig.cmake" in os.listdir(pg.get_cmake_dir())
        True
    """
    return str(library_folder().parent / "cmake")
