"""What published commands start, without a shell: flags and environment are read once, together, and must agree."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.evaluate.launch_plan import TOOL, LaunchCommand, make_plan

FLAGS = ("--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "64")


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoints" / "InternVL2-V2PE"
    (folder / "iter_0000260").mkdir(parents=True)
    return str(folder)


def plan(checkpoint, *words, benchmarks="general", one_copy=False, found=0, **environment):
    command = LaunchCommand("evaluate_auto.sh", [checkpoint, *words], environment, benchmarks, one_copy, found)
    return make_plan(command)


def flags_of(found):
    program, *words = found.arguments
    assert program == str(TOOL) and TOOL.is_file()
    return dict(zip(words[::2], words[1::2], strict=True))


def test_the_published_command(checkpoint):
    found = plan(checkpoint, *FLAGS, found=8, STRIDE="64")
    out = "work_dirs/evaluate/InternVL2-V2PE/stride_64"
    place = ["--checkpoint", checkpoint, "--benchmarks", "general", "--out", out]
    assert found.arguments == [str(TOOL), *place, *FLAGS] and found.out == out
    assert found.start == "start_with_torchrun" and found.variables == {"GPUS": "8", "GPUS_PER_NODE": "8"}
    assert found.ending.splitlines()[-1] == f"report   python tools/report.py {out} --out {out}/report"


@pytest.mark.parametrize("flag", ["--rope_pos_id_stride", "--rope-pos-id-stride"])
@pytest.mark.parametrize("joined", [False, True])
def test_every_spelling_of_a_flag_is_understood(flag, joined, checkpoint):
    words = [f"{flag}=64"] if joined else [flag, "64"]
    found = plan(checkpoint, *words, STRIDE="64")
    assert found.arguments[-len(words) :] == words and found.out.endswith("/stride_64") and not found.notes
    assert "--rope_pos_id_stride" not in found.arguments[: -len(words)]


def test_the_last_of_a_flag_wins(checkpoint):
    assert plan(checkpoint, "--rope_pos_id_stride", "4", "--rope-pos-id-stride=16").out.endswith("/stride_16")


def test_a_stride_of_the_environment_alone_becomes_the_flag(checkpoint):
    found = plan(checkpoint, "--mode", "reference", STRIDE="1/2")
    assert flags_of(found)["--rope_pos_id_stride"] == "1/2" and found.out.endswith("/stride_1-2")
    assert found.notes == ["STRIDE=1/2: asking with --rope_pos_id_stride 1/2"]


def test_several_strides_have_one_folder(checkpoint):
    found = plan(checkpoint, "--strides", "16", "64", "--root", "sets")
    assert found.out == "work_dirs/evaluate/InternVL2-V2PE/strides"
    assert f"{found.out}/stride_*/BENCHMARK/results.json" in found.ending
    assert found.ending.endswith(f"report.py {found.out}/stride_* --root sets --out {found.out}/report")


@pytest.mark.parametrize(
    ("words", "environment", "processes", "added"),
    [
        ((), {}, 1, ()),
        ((), {"GPUS_PER_TASK": "2"}, 2, ("--context-parallel-size", "2")),
        ((), {"GPUS": "4", "GPUS_PER_TASK": "2"}, 4, ("--context-parallel-size", "2")),
        (("--tensor-model-parallel-size", "1"), {"GPUS": "4"}, 4, ()),
        (("--tensor-model-parallel-size=2", "--context-parallel-size=2"), {}, 4, ()),
    ],
)
def test_processes(words, environment, processes, added, checkpoint):
    found = plan(checkpoint, *words, **environment)
    assert found.variables["GPUS"] == str(processes)
    assert found.arguments[7:] == [*added, *words]
    assert found.start == ("start_alone" if processes == 1 else "start_with_torchrun")


def test_a_long_context_takes_all_processes_for_one_copy(checkpoint):
    assert flags_of(plan(checkpoint, one_copy=True, found=8))["--context-parallel-size"] == "8"
    assert flags_of(plan(checkpoint, one_copy=True, found=8, GPUS_PER_TASK="4"))["--context-parallel-size"] == "4"
    assert "--context-parallel-size" not in flags_of(
        plan(checkpoint, "--tensor-model-parallel-size", "2", one_copy=True, found=8)
    )


def test_gpus_that_no_copy_can_use_are_left_alone(checkpoint):
    found = plan(checkpoint, found=3, GPUS_PER_TASK="2")
    assert found.variables["GPUS"] == "2" and found.notes == ["using 2 of 3 GPUs: 2 share a copy of the model"]


def test_slurm_starts_the_tasks_of_its_job(checkpoint):
    found = plan(checkpoint, found=16, PARTITION="p", GPUS_PER_NODE="8")
    assert found.start == "start_with_srun"
    assert found.variables == {"GPUS": "16", "JOB_NAME": "megatron-v2pe-evaluate"}
    assert plan(checkpoint, found=8, PARTITION="p", JOB_NAME="mine").variables == {"GPUS": "8", "JOB_NAME": "mine"}


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (("--out", "b"), {"OUT": "a"}, "OUT=a, but --out is b"),
        (("--context-parallel-size", "0"), {}, "--context-parallel-size=0 is not a whole number above 0"),
        ((), {"NNODES": "07"}, "NNODES=07 is not a whole number above 0"),
        ((), {"GPUS": "4", "NNODES": "3"}, "GPUS=4 is not a multiple of NNODES=3"),
        (("--rope_pos_id_stride", "32"), {"STRIDE": "64"}, "STRIDE=64, but --rope_pos_id_stride is 32"),
    ],
)
def test_what_contradicts_itself_is_refused(words, environment, message, checkpoint):
    with pytest.raises(ConfigError) as refused:
        plan(checkpoint, *words, **environment)
    assert str(refused.value).startswith(message)


def test_an_empty_variable_counts_as_not_given(checkpoint):
    empty = dict.fromkeys(("GPUS", "GPUS_PER_TASK", "GPUS_PER_NODE", "NNODES", "STRIDE", "OUT", "PARTITION"), "")
    assert plan(checkpoint, **empty) == plan(checkpoint)


def test_a_shell_reads_the_plan_as_it_is(checkpoint):
    odd = "a 'b' $(touch gone) `c` \"d\" \\ *\n e"
    found = plan(checkpoint, "--root", odd, OUT=odd)
    program = f'{found.as_shell()}\nprintf \'%s\\0\' "$out" "$ending" "$@"'
    read = subprocess.run(["sh", "-c", program], capture_output=True, check=True).stdout.decode().split("\0")
    assert read == [odd, found.ending, *found.arguments, ""]
    assert shlex.split(found.as_shell().splitlines()[0]) == ["GPUS=1"]


def test_no_torch_is_imported():
    code = "import sys, megatron_v2pe.evaluate.launch_plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
