"""A CPU behind ggml's RPC backend, on the loopback interface: a device that is no CPU of its own.

With a port as argument it serves there; served() starts that, connect() takes its devices.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from phiggml.runtime import library_folder, load_backends


def _functions(reg_library: ctypes.CDLL) -> dict[str, int]:
    """Addresses of what the RPC module offers, by name."""
    reg_library.ggml_backend_reg_by_name.restype = ctypes.c_void_p
    reg_library.ggml_backend_reg_by_name.argtypes = [ctypes.c_char_p]
    get = reg_library.ggml_backend_reg_get_proc_address
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
    reg = reg_library.ggml_backend_reg_by_name(b"RPC")
    assert reg, "the RPC plugin is not loaded"
    names = ("ggml_backend_rpc_add_server", "ggml_backend_rpc_start_server")
    return {name: get(reg, name.encode()) for name in names}


def _library() -> ctypes.CDLL:
    load_backends()
    return ctypes.CDLL(str(library_folder() / "libphiggml-ggml.so"))


@contextlib.contextmanager
def served() -> Iterator[int]:
    """Starts a process that lends its CPU at a free port, and ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, __file__, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            _wait_for(server, port)
            yield port
        finally:
            server.kill()


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server has ended"
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("no server after 60 s")


def connect(port: int) -> None:
    """Registers the devices of a server on this machine."""
    library = _library()
    pointer = ctypes.c_void_p
    add = ctypes.CFUNCTYPE(pointer, ctypes.c_char_p)(
        _functions(library)["ggml_backend_rpc_add_server"]
    )
    reg = add(f"127.0.0.1:{port}".encode())
    assert reg, "nobody serves there"
    library.ggml_backend_register.argtypes = [pointer]
    library.ggml_backend_register(reg)


def serve(port: int) -> None:
    """Lends this process's CPU; ends when it is killed."""
    library = _library()
    pointer = ctypes.c_void_p
    library.ggml_backend_dev_by_type.restype = pointer
    library.ggml_backend_dev_by_type.argtypes = [ctypes.c_int]
    cpu = (pointer * 1)(library.ggml_backend_dev_by_type(0))
    size = ctypes.c_size_t
    start = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, size, size, pointer)(
        _functions(library)["ggml_backend_rpc_start_server"]
    )
    start(f"127.0.0.1:{port}".encode(), None, 1, 1, ctypes.addressof(cpu))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
