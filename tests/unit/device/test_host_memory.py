"""Host memory of a process and its children, as Linux counts it."""

from __future__ import annotations

import json
import subprocess
import sys

SIZE = 64 << 20
MEASURES = f"""
import json, subprocess, sys
from megatron_v2pe.device.host_memory import resident_bytes
seen = [resident_bytes()]
held = bytearray({SIZE})
held[::4096] = b"x" * len(held[::4096])
seen.append(resident_bytes())
del held
seen.append(resident_bytes())
child = "x = bytearray({SIZE}); x[::4096] = b'x' * len(x[::4096]); print(flush=True); input()"
with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    seen.append(resident_bytes())
    process.communicate(b"\\n")
seen.append(resident_bytes())
print(json.dumps(seen))
"""


def test_what_is_allocated_is_counted_here_and_in_a_child():
    """In a process of its own: the pools and readers of other tests are children of this one."""
    done = subprocess.run([sys.executable, "-c", MEASURES], capture_output=True, text=True, check=True)
    before, held, freed, with_child, after = json.loads(done.stdout)
    assert before + 0.9 * SIZE < held < before + 1.5 * SIZE
    assert freed + 0.9 * SIZE < with_child < freed + 1.5 * SIZE
    assert after < freed + 0.5 * SIZE
