"""The process: import, log, backends, the AMX path."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import phiggml as pg
from phiggml import _core
from phiggml.runtime import library_folder, thread_count

NANO = Path(__file__).resolve().parent.parent / "examples" / "phi3-nano"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_import_prints_nothing_and_stays_light() -> None:
    code = (
        "import sys, phiggml; print([m for m in ('jinja2', 'tqdm', 'torch') if m in sys.modules])"
    )
    result = run(code)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "[]", "")


def test_library_calls_print_nothing(nano_f16: Path, tmp_path: Path) -> None:
    code = f"""
import numpy as np
import phiggml as pg
pg.devices()
x = np.random.default_rng(0).standard_normal((2, 256), np.float32)
# Tables of IQ2_XS and IQ2_S are built as those of IQ2_XXS are, and take seconds.
for type in set(pg.quant_types()) - {{"IQ2_XS", "IQ2_S"}}:
    pg.quantize(x, type, imatrix=np.ones(256, np.float32)).dequantize()
    pg.quantization_error(x, type, imatrix=np.ones(256, np.float32))
    try:
        pg.quantize(x * 1e30, type, imatrix=np.ones(256, np.float32))
    except pg.InputError:
        pass
pg.convert({str(NANO)!r}, {str(tmp_path / "c.gguf")!r}, "BF16")
with pg.GGUFFile({str(tmp_path / "c.gguf")!r}) as file:
    list(file.metadata.items())
open({str(tmp_path / "cut.gguf")!r}, "wb").write(open({str(nano_f16)!r}, "rb").read()[:5000])
try:
    pg.Model({str(tmp_path / "cut.gguf")!r})
except pg.FormatError:
    pass
pg.quantize_model({str(nano_f16)!r}, {str(tmp_path / "q.gguf")!r}, "Q4_K_M")
with pg.Session({str(tmp_path / "q.gguf")!r}, n_ctx=64) as session:
    session.generate("The dog", max_tokens=3, sampling=pg.Sampling(repeat_penalty=1.1))
    session.chat([{{"role": "user", "content": "Hi"}}], max_tokens=3)
    try:
        session.eval([5] * 100)
    except pg.SessionError:
        pass
try:
    pg.Model({str(nano_f16)!r}, devices=["absent"])
except pg.DeviceError:
    pass
"""
    result = run(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_log_goes_to_logging(nano_f16: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="phiggml"), pg.Model(nano_f16):
        pass
    assert any("phi3" in record.message for record in caplog.records)


def test_an_absent_cpu_variant_raises() -> None:
    code = "import phiggml as pg\ntry:\n    pg.devices()\nexcept pg.DeviceError as e:\n    print(e)"
    result = run(code, PHIGGML_CPU_VARIANT="none-such")
    assert result.returncode == 0 and "none-such" in result.stdout


def test_libraries_have_names_of_our_own() -> None:
    names = {path.name for path in library_folder().iterdir()}
    linked = [name for name in names if "cpu" not in name and not name.startswith("libggml-")]
    assert linked and all(name.startswith("libphiggml-") for name in linked)


def test_thread_counts() -> None:
    assert 1 <= thread_count(None, "x", physical=True) <= thread_count(None, "x")
    assert thread_count(None, "x") <= min(len(os.sched_getaffinity(0)), 512)
    assert thread_count(3, "x") == 3
    for wrong in (0, -1, 10**6, True, 2.0, "2"):
        with pytest.raises(pg.InputError, match="threads"):
            thread_count(wrong, "x")  # type: ignore[arg-type]


def cpu_has(flag: str) -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and flag in cpuinfo.read_text().split()


def test_the_cpu_module_has_amx_where_the_cpu_has() -> None:
    pg.devices()
    features = dict(_core.runtime.cpu_features())
    if cpu_has("amx_int8"):
        assert features.get("AMX_INT8") == "1"
    else:
        assert "AMX_INT8" not in features


@pytest.mark.parametrize("type", ["Q4_K", "Q4_0", "Q8_0", "Q6_K"])
def test_quantized_products(
    tmp_path: Path, nano_f32: Path, type: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On a CPU with AMX these run on its tiles, where GCC 12 once made every product fault."""
    path = tmp_path / "pure.gguf"
    overrides = {"blk\\..*(attn|ffn)_(qkv|output|up|down)\\.weight": type}
    pg.quantize_model(nano_f32, path, "Q8_0", overrides=overrides)
    tokens = np.arange(3, 67)  # many rows: the tile path is for matrices
    with caplog.at_level(logging.DEBUG, logger="phiggml"):
        session = pg.Session(path, n_ctx=128)
    on_tiles = any("AMX model buffer size" in record.message for record in caplog.records)
    assert on_tiles == cpu_has("amx_int8")
    with session, pg.Session(nano_f32, n_ctx=128) as exact:
        found, truth = session.eval(tokens, logits="all"), exact.eval(tokens, logits="all")
    # Decoded weights of 4 bits are about 7% off (PERFORMANCE of the types: test_quant.py).
    assert np.sqrt(np.mean((found - truth) ** 2) / np.mean(truth**2)) < 0.5
    assert np.mean(found.argmax(1) == truth.argmax(1)) > 0.5
