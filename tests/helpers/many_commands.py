"""Run many training command lines one after the other in one process: `python -m ... COMMANDS.json RESULTS.json`.

For tests of what a wrong command says: starting a process for each would take seconds a piece.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
from pathlib import Path


def main(commands: Path, results: Path) -> None:
    """Run each argument list of a JSON list; write `[status, output]` of each as JSON."""
    from megatron_v2pe.recipes.registry import RECIPES
    from megatron_v2pe.train import cli

    finished: list[tuple[int, str]] = []
    for arguments in json.loads(commands.read_text()):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                status = cli.main(arguments, RECIPES)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except Exception:
                status = -1
                traceback.print_exc()
        finished.append((status, output.getvalue()))
    results.write_text(json.dumps(finished))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
