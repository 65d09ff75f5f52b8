"""What a published evaluation command starts: `STRIDE=64 sh scripts/evaluate_auto.sh CHECKPOINT --FLAG ...`.

A script of `scripts/evaluate*.sh` hands its arguments and its environment to `main`, which prints what is to be started
as shell assignments; the script then starts it with torchrun or srun. Flags are read by the parser of
`tools/evaluate.py` (`cli`), so both understand the same spellings. What the flags and the environment say must agree:
a folder never names another stride than was asked. Nothing here imports torch, so that planning takes 0.1 s.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_v2pe.base.exit_status import MEND
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.evaluate.cli import make_parser
from megatron_v2pe.foreign.printable import printable

TOOL = Path(__file__).resolve().parents[2] / "tools" / "evaluate.py"
_DEGREES = ("tensor", "pipeline", "context")
_NUMBER = re.compile("[1-9][0-9]*")


@dataclass(frozen=True)
class LaunchCommand:
    """An evaluation script with its arguments and its environment."""

    script: str
    """Its path as it was typed, for messages."""
    words: Sequence[str]
    """Its arguments: the checkpoint, the task where the script has none of its own, flags."""
    environment: Mapping[str, str]
    """The variables it was given; an empty one counts as not given."""
    benchmarks: str = ""
    """What the script asks; empty: its second argument says it."""
    one_copy: bool = False
    """Whether all processes share one copy of the model unless GPUS_PER_TASK says otherwise."""
    found: int = 0
    """Processes where GPUS does not say it: on Slurm the tasks of the job, else the GPUs of this machine."""

    def variable(self, name: str, default: str = "") -> str:
        """Return a variable, or a default where it is not given."""
        return self.environment.get(name) or default

    def number(self, name: str, default: str) -> int:
        """Return a variable that counts something.

        Raises:
            ConfigError: it is no whole number above 0.
        """
        return _number(name, self.variable(name, default))


@dataclass(frozen=True)
class LaunchPlan:
    """What is to be started."""

    start: str
    """The function of `scripts/launch.sh` that starts it."""
    variables: Mapping[str, str]
    """What that function reads."""
    arguments: Sequence[str]
    """The program and its arguments."""
    out: str
    """The folder of answers and results."""
    ending: str
    """What is said after an evaluation that has succeeded."""
    notes: Sequence[str]
    """What is said before it is started."""

    def as_shell(self) -> str:
        """Return shell commands that set the variables and make the arguments the positional parameters."""
        names = {**self.variables, "start": self.start, "out": self.out, "ending": self.ending}
        lines = [f"{name}={shlex.quote(value)}" for name, value in names.items()]
        return "\n".join([*lines, f"set -- {shlex.join(self.arguments)}"])


def make_plan(command: LaunchCommand) -> LaunchPlan:
    """Return what a command starts.

    Raises:
        ConfigError: something is missing, or flags and environment contradict each other.
        SystemExit: a flag that `tools/evaluate.py` does not know, or cannot read (2).
    """
    checkpoint, benchmarks, words = _split(command)
    flags = _read(words)
    notes: list[str] = []
    stride = _stride(command, flags, notes)
    out = _out(command, flags, checkpoint, stride)
    gpus, copy, added = _processes(command, flags, notes)
    if gpus % copy:
        raise ConfigError(f"GPUS={gpus} is not a multiple of the {copy} processes that share one copy of the model")
    if stride and flags.rope_pos_id_stride is None:
        added += ["--rope_pos_id_stride", stride]
    if command.variable("PARTITION"):
        start = "start_with_srun"
        variables = {"GPUS": str(gpus), "JOB_NAME": command.variable("JOB_NAME", "megatron-v2pe-evaluate")}
    else:
        start = "start_with_torchrun" if gpus > 1 else "start_alone"
        variables = {"GPUS": str(gpus), "GPUS_PER_NODE": str(_on_each_machine(command, gpus))}
    place = ["--checkpoint", checkpoint, "--benchmarks", benchmarks, "--out", out]
    ending = _ending(out, flags)
    return LaunchPlan(start, variables, [str(TOOL), *place, *added, *words], out, ending, notes)


def _split(command: LaunchCommand) -> tuple[str, str, list[str]]:
    """Return checkpoint, benchmarks and flags."""
    words = list(command.words)
    if not words or words[0].startswith("-"):
        raise ConfigError(
            f"the checkpoint comes first, flags behind it: sh {command.script} CHECKPOINT {''.join(words[:1])} ..."
        )
    checkpoint = words.pop(0)
    if not os.path.isdir(checkpoint):
        name = checkpoint.rpartition("/")[2]
        fetch = f"; to fetch it: huggingface-cli download OpenGVLab/{name} --local-dir {checkpoint}"
        raise ConfigError(
            f"{checkpoint}: no such folder; expected a Hugging Face or Megatron checkpoint, or a run"
            f"{fetch if name.startswith('InternVL') else ''}"
        )
    if command.benchmarks:
        return checkpoint, command.benchmarks, words
    if not words or not words[0] or words[0].startswith("-"):
        raise ConfigError(f"the task comes second, flags behind it: sh {command.script} {checkpoint} TASK")
    return checkpoint, words[0], words[1:]


def _read(words: Sequence[str]) -> Namespace:
    """Read the flags; those that decide over the plan are None where they are not given."""
    unset = {f"{degree}{'_model' * (degree != 'context')}_parallel_size": None for degree in _DEGREES}
    return make_parser().parse_args(words, Namespace(**unset, root=None))


def _stride(command: LaunchCommand, flags: Namespace, notes: list[str]) -> str:
    """Return the stride the flags or the environment name; empty: none."""
    asked, named = flags.rope_pos_id_stride or "", command.variable("STRIDE")
    if named and not asked:
        notes.append(f"STRIDE={named}: asking with --rope_pos_id_stride {named}")
    elif named and asked != named:
        raise ConfigError(
            f"STRIDE={named}, but --rope_pos_id_stride is {asked}; write them alike, or leave STRIDE away"
        )
    return named or asked


def _out(command: LaunchCommand, flags: Namespace, checkpoint: str, stride: str) -> str:
    """Return the folder of answers and results."""
    named = command.variable("OUT")
    if flags.out is not None:
        if named and Path(named) != flags.out:
            raise ConfigError(f"OUT={named}, but --out is {flags.out}; leave one of them away")
        return str(flags.out)
    if named:
        return named
    asked = "strides" if flags.strides else f"stride_{stride.replace('/', '-')}" if stride else "as_trained"
    return f"work_dirs/evaluate/{_name_of(checkpoint, command.variable('PWD'))}/{asked}"


def _name_of(checkpoint: str, here: str) -> str:
    """Return what a checkpoint is called: its folder, of one of a run's checkpoints the run's folder as well."""
    if not (os.path.isabs(here) and os.path.isdir(here) and os.path.samefile(here, ".")):
        here = os.getcwd()
    run, _, name = os.path.normpath(os.path.join(here, checkpoint)).rpartition("/")
    return f"{run.rpartition('/')[2]}_{name}" if name.startswith("iter_") else name


def _processes(command: LaunchCommand, flags: Namespace, notes: list[str]) -> tuple[int, int, list[str]]:
    """Return how many processes there are, how many share a copy of the model, and the flag that says so if missing."""
    layout = _layout(flags)
    named = command.variable("GPUS_PER_TASK")
    if layout is not None and named not in ("", str(layout)):
        raise ConfigError(f"GPUS_PER_TASK={named}, but the flags lay a copy of the model out over {layout} processes")
    copy = layout or command.number("GPUS_PER_TASK", "1")
    nodes = command.number("NNODES", "1")
    if command.variable("GPUS"):
        gpus = command.number("GPUS", "")
    else:
        if command.variable("PARTITION"):
            found = command.found
        elif command.variable("GPUS_PER_NODE"):
            found = command.number("GPUS_PER_NODE", "") * nodes
        else:
            found = command.found * nodes
        found = found or copy
        gpus = found // copy * copy
        if not gpus:
            raise ConfigError(f"a copy of the model takes {copy} processes, but there are {found} GPUs; set GPUS")
        if gpus != found:
            notes.append(f"using {gpus} of {found} GPUs: {copy} share a copy of the model")
    if layout is not None:
        return gpus, copy, []
    if command.one_copy and not named:
        copy = gpus
    return gpus, copy, ["--context-parallel-size", str(copy)] if copy > 1 else []


def _layout(flags: Namespace) -> int | None:
    """Return over how many processes the flags lay a copy of the model out; None: they do not say."""
    degrees = {name: value for name, value in vars(flags).items() if name.endswith("_parallel_size")}
    given = {name: value for name, value in degrees.items() if value is not None}
    if not given:
        return None
    copy = 1
    for name, value in given.items():
        copy *= _number(f"--{name.replace('_', '-')}", str(value))
    return copy


def _on_each_machine(command: LaunchCommand, gpus: int) -> int:
    """Return how many of the processes torchrun starts on each machine."""
    nodes = command.number("NNODES", "1")
    if gpus % nodes:
        raise ConfigError(f"GPUS={gpus} is not a multiple of NNODES={nodes}")
    most = command.number("GPUS_PER_NODE", str(gpus))
    if gpus // nodes > most:
        raise ConfigError(f"GPUS={gpus} are more than GPUS_PER_NODE={most} on NNODES={nodes} machines")
    return gpus // nodes


def _number(name: str, value: str) -> int:
    if not _NUMBER.fullmatch(value):
        raise ConfigError(f"{name}={value} is not a whole number above 0")
    return int(value)


def _ending(out: str, flags: Namespace) -> str:
    """Return where answers and results are, and the command of the report."""
    folders = f"{out}/stride_*" if flags.strides else out
    root = "" if flags.root is None else f" --root {flags.root}"
    return (
        f"\nanswers  {folders}/BENCHMARK/answers-*.jsonl\nresults  {folders}/BENCHMARK/results.json\n"
        f"report   python tools/report.py {folders}{root} --out {out}/report"
    )


def main(argv: Sequence[str]) -> int:
    """Print the plan of a script for its shell; return the exit status.

    Args:
        argv: the script, the benchmarks it asks, `all` if all processes share one copy of the model, how many
            processes there are unless GPUS says it (`LaunchCommand.found`), and the script's own arguments.
    """
    script, benchmarks, copy, found, *words = argv
    try:
        plan = make_plan(LaunchCommand(script, words, os.environ, benchmarks, copy == "all", int(found)))
    except ConfigError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return MEND
    for note in plan.notes:
        print(printable(note), file=sys.stderr)
    sys.stdout.buffer.write(os.fsencode(plan.as_shell() + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
