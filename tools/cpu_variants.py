"""ggml's CPU modules for x86-64 and what each uses, as Linux names it.

Source: ggml/src/CMakeLists.txt.
"""

from __future__ import annotations

__all__ = ["VARIANTS"]

_AVX = "sse4_2 avx"
_AVX2 = f"{_AVX} f16c fma avx2 bmi2"
_AVX512 = f"{_AVX2} avx512f avx512cd avx512vl avx512dq avx512bw"

# From plain x86-64 up, in upstream's order.
VARIANTS = {
    "x64": "",
    "sse42": "sse4_2",
    "sandybridge": _AVX,
    "ivybridge": f"{_AVX} f16c",
    "piledriver": f"{_AVX} f16c fma",
    "haswell": _AVX2,
    "skylakex": _AVX512,
    "cannonlake": f"{_AVX512} avx512vbmi",
    "cascadelake": f"{_AVX512} avx512_vnni",
    "icelake": f"{_AVX512} avx512vbmi avx512_vnni",
    "cooperlake": f"{_AVX512} avx512_vnni avx512_bf16",
    "zen4": f"{_AVX512} avx512vbmi avx512_vnni avx512_bf16",
    "alderlake": f"{_AVX2} avx_vnni",
    "sapphirerapids": f"{_AVX512} avx512vbmi avx512_vnni avx512_bf16 amx_tile amx_int8",
}
