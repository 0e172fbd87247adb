"""python -m phiggml is the command phiggml."""

from __future__ import annotations

import sys

from phiggml.cli import main

sys.exit(main())
