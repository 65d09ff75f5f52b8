"""Host memory of a process and its children, as Linux counts it."""

from __future__ import annotations

import subprocess
import sys

from megatron_v2pe.device.host_memory import resident_bytes

SIZE = 64 << 20


def test_what_is_allocated_is_counted_here_and_in_a_child():
    before = resident_bytes()
    held = bytearray(SIZE)
    held[::4096] = b"x" * len(held[::4096])
    assert before + 0.9 * SIZE < resident_bytes() < before + 1.5 * SIZE
    del held
    before = resident_bytes()
    program = f"x = bytearray({SIZE}); x[::4096] = b'x' * len(x[::4096]); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert before + 0.9 * SIZE < resident_bytes()
        child.communicate(b"\n")
    assert resident_bytes() < before + 0.5 * SIZE
