"""The launcher's account of an end: what a process wrote and could not print any more is printed by the launcher."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from megatron_v2pe.base import exit_status
from megatron_v2pe.device import agent, watchdog


@pytest.mark.parametrize(("alive", "told"), [(True, 1), (False, 0)])
def test_what_a_process_that_was_killed_could_not_say_is_said(alive, told, monkeypatch, capsys):
    """Rank 1 writes why the run ends and stands still before it prints that; rank 0 follows and ends at once."""
    for name in ("_NOTICE_SECONDS", "_END_SECONDS"):
        monkeypatch.setattr(agent, name, 0.1)
    lines = [f"raise SystemExit({exit_status.MEND})", "import time; time.sleep(600)" if alive else ""]
    processes = [subprocess.Popen([sys.executable, "-c", line], start_new_session=True) for line in lines]
    processes[0].wait()
    if not alive:
        processes[1].wait()
    store = dist.HashStore()
    written = {"rank": 1, "host": socket.gethostname(), "text": "a.jsonl:3: no image", "status": exit_status.MEND}
    dist.PrefixStore("run/0/1", store).set(watchdog.END, json.dumps(written))
    group = SimpleNamespace(
        workers=[SimpleNamespace(local_rank=rank, global_rank=rank) for rank in range(2)],
        spec=SimpleNamespace(rdzv_handler=SimpleNamespace(get_run_id=lambda: "run"), max_restarts=0),
        store=store,
    )
    one = object.__new__(agent._Agent)
    one._remaining_restarts = 0
    one._pcontext = SimpleNamespace(
        subprocess_handlers={rank: SimpleNamespace(proc=process) for rank, process in enumerate(processes)}
    )
    one._end_all(group, {0: exit_status.MEND})
    assert processes[1].wait() in ((-signal.SIGTERM, -signal.SIGKILL) if alive else (0,))
    monkeypatch.setattr(one, "run", lambda: SimpleNamespace(is_failed=lambda: True), raising=False)
    assert agent._run(one) == exit_status.MEND
    said = capsys.readouterr().err
    assert said.count("error: a.jsonl:3: no image [rank 1 on ") == told, said
