"""The parts of `scripts/check_gpu.sh`: one file each, with a function that measures and one table of what came out."""

import os
import sys
from pathlib import Path

PYTHON = os.environ.get("PYTHON_EXEC", sys.executable)
"""What runs the parts, each in a process of its own: as with torchrun, PYTHON_EXEC or this interpreter."""

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))  # the cases of the parity tests
