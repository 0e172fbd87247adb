"""tools/check_wheel_code.py: which functions are beyond plain x86-64, by a made-up listing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
check_wheel_code = importlib.import_module("check_wheel_code")

LISTING = """
0000000000001000 <_init>:
    1000:\tsub    $0x8,%rsp
    1004:\tcall   1100 <_GLOBAL__sub_I_ops.cpp>
    1009:\tbnd jmp 1200 <_Z5tableR+0x20>

0000000000001100 <_GLOBAL__sub_I_ops.cpp>:
    1100:\tcall   1200 <_Z5tablev@plt>
    1105:\tlea    0x12(%rip),%rax        # 1300 <_Z6kernelv>
    110c:\tret

0000000000001200 <_Z5tablev>:
    1200:\tvmovups %ymm0,(%rdi)
    1204:\trep stos %al,%es:(%rdi)
    1206:\tret

0000000000001300 <_Z6kernelv>:
    1300:\tvfmadd231ps %zmm1,%zmm2,%zmm3
    1304:\tret
"""


def test_what_runs_first_is_followed_through_calls() -> None:
    found = check_wheel_code.functions(LISTING.splitlines(keepends=True))
    assert {name: sorted(function.beyond) for name, function in found.items()} == {
        "_init": [],
        "_GLOBAL__sub_I_ops.cpp": [],
        "_Z5tablev": ["vmovups"],
        "_Z6kernelv": ["vfmadd231ps"],
    }
    # An address that is taken is no call.
    assert check_wheel_code.reached(found, ["_init"]) == set(found) - {"_Z6kernelv"}


PLAIN = (
    "mov movaps addpd cvtsi2sd pxor paddd pshufd tzcnt bsf verr vmcall shl sar pause sfence movq"
)
BEYOND = (
    "vaddps vpdpbusd vzeroupper kmovq kortestb pshufb haddps pmulld roundss popcnt lzcnt blsr "
    "shlx sarx crc32b aesenc pclmulqdq tdpbssd tileloadd ldtilecfg movbe vcvtph2ps pblendvb mulx"
)


@pytest.mark.parametrize("mnemonic", PLAIN.split())
def test_sse2_is_plain(mnemonic: str) -> None:
    assert not check_wheel_code.BEYOND.fullmatch(mnemonic)


@pytest.mark.parametrize("mnemonic", BEYOND.split())
def test_later_instructions_are_not(mnemonic: str) -> None:
    assert check_wheel_code.BEYOND.fullmatch(mnemonic)
