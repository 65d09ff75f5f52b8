"""A `python` with the project's imports behind it: tests that start many commands wait for the imports once.

`warm_python(folder)` starts a server that imports the package, and yields an executable that stands for `python`: it
hands its arguments, environment, working folder and open files to the server, whose fork runs the command, and ends
with its status. Everything of the command is its own (process, files, signals); only the time of importing is saved. A
command whose client is killed is killed with all it has started, and a server whose tests are gone ends. Launchers take
it as PYTHON, torchrun's workers as PYTHON_EXEC. `shared_warm_python()` is one for all tests of a process.

The client's half of this file is run without site-packages and imports nothing slow.

A command that imports the trainer and the evaluation starts in 0.09 s in place of 2.5 s, and the tests start several
hundred; `multiprocessing`'s fork server does not run a command as `python` would (its arguments, signals, open files,
status). The median of eight runs of `PYTHON -c "import megatron_v2pe.train.main"` with each PYTHON, two cores.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any

_MOST = 1 << 20
"""Bytes of a command with its environment."""


@cache
def shared_warm_python() -> str:
    """Return the executable of a server that is started at the first call and ends with this process."""
    import tempfile

    stack = ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="warm"))
    executable = stack.enter_context(warm_python(folder))
    owner = os.getpid()
    atexit.register(lambda: stack.close() if os.getpid() == owner else None)  # not at the end of a fork
    return executable


@contextmanager
def warm_python(folder: Any, seconds: float = 600) -> Iterator[str]:
    """Start a server and yield the path of its executable; what it still runs at the end is killed.

    Args:
        folder: an existing folder for the executable, the socket and the server's messages; with a short path.
        seconds: to wait for the imports.

    Raises:
        TimeoutError: the server did not start.
    """
    import subprocess
    import time
    from pathlib import Path

    folder = Path(folder)
    path, executable, log = folder / "warm", folder / "python", folder / "warm.log"
    executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" ask "{path}" "$@"\n')
    executable.chmod(0o755)
    line = [sys.executable, __file__, "serve", str(path)]
    root = Path(__file__).resolve().parents[2]
    with open(log, "wb") as stream:
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(
            line, env=environment, stdin=subprocess.PIPE, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        until = time.monotonic() + seconds
        while not path.exists():
            if server.poll() is not None or time.monotonic() > until:
                raise TimeoutError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield str(executable)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def _ask(path: str, arguments: list[str]) -> int:
    """Have a command run by the server; signals are passed on, from before it starts."""
    child, early = 0, list[int]()

    def passed_on(number: int, _: object) -> None:
        if not child:
            early.append(number)
            return
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, passed_on)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        message = json.dumps({"argv": arguments, "env": dict(os.environ), "cwd": os.getcwd()}).encode()
        socket.send_fds(connection, [b"%8d" % len(message)], [0, 1, 2])
        connection.sendall(message)
        answers = connection.makefile("r")
        child = int(answers.readline())
        for number in early:
            passed_on(number, None)
        status = answers.readline()
    return int(status) if status else 1


def _serve(path: str) -> None:
    """Import everything, then fork a keeper for each command, which forks the command itself and waits for it."""
    import gc
    import importlib
    import pkgutil

    import megatron_v2pe

    ours = [module.name for module in pkgutil.walk_packages(megatron_v2pe.__path__, "megatron_v2pe.")]
    for name in ["torch.distributed.run", "torch._dynamo", *ours]:  # PyTorch imports Dynamo with the first optimizer
        with suppress(ImportError):  # an optional package is missing
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no command looks for what could be freed among what it shares with all others
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + ".new")
        listener.listen(64)
        os.rename(path + ".new", path)
        while True:
            if sys.stdin.fileno() in select.select([listener, sys.stdin], [], [])[0]:
                os.killpg(0, signal.SIGKILL)  # nobody is there any more to ask
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                _keep(connection)
            connection.close()


def _keep(connection: socket.socket) -> None:
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    message = b""
    while len(message) < int(head):
        part = connection.recv(_MOST)
        if not part:  # the client was killed while it asked
            os._exit(1)
        message += part
    command = json.loads(message)
    child = os.fork()
    if child == 0:
        connection.close()
        _become(command, files)
    connection.sendall(b"%d\n" % child)
    ended = os.pidfd_open(child)
    if ended not in select.select([connection, ended], [], [])[0]:  # the client has gone
        _kill_all(child)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    with suppress(BrokenPipeError):
        connection.sendall(b"%d\n" % (code if code >= 0 else 128 - code))
    os._exit(0)


def _kill_all(process: int) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process)
        for one in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def _become(command: dict[str, Any], files: list[int]) -> None:
    """Run a command in this process, as `python` would, and end."""
    import runpy
    import threading
    import traceback

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(command["env"])
    os.chdir(command["cwd"])
    words, code = list(command["argv"]), 0
    while words[0] in ("-u", "-B"):
        del words[0]
    script = words[0] not in ("-c", "-m")
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            sys.path[0] = os.getcwd()
            sys.modules.pop(words[1], None)  # else runpy warns that it has been imported
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
            runpy.run_path(os.path.abspath(words[0]), run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException as error:
        shown = error.__traceback__
        while shown and (shown.tb_frame.f_code.co_filename == __file__ or (script and _of_runpy(shown))):
            shown = shown.tb_next
        traceback.print_exception(type(error), error, shown)
        code = 1
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]  as the interpreter does at its end
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _of_runpy(shown: Any) -> bool:
    return "runpy" in shown.tb_frame.f_code.co_filename


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(sys.argv[2])
    else:
        sys.exit(_ask(sys.argv[2], sys.argv[3:]))
