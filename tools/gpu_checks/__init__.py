"""The parts of `scripts/check_gpu.sh`: one file each, with a function that measures and one table of what came out."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))  # the cases of the parity tests
