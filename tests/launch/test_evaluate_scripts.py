"""The evaluate scripts: published commands as they are written, what they start, and one evaluation from end to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers.tool_runs import free_port
from helpers.warm_python import shared_warm_python
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark
from megatron_v2pe.workshop.synthetic.small_data import write_tokenizer

ROOT = Path(__file__).parents[2]
BIN = Path(__file__).parent / "bin"
SHELLS = [path for path in map(shutil.which, ("dash", "bash")) if path]
AUTO = "sh scripts/evaluate_auto.sh <checkpoint>"
FLAGS = "--rope_pos_id_version v2pe_fix --rope_pos_id_stride 64"
SETTINGS = (
    *("GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "PARTITION", "STRIDE", "GROUP", "OUT", "NNODES", "OMP_NUM_THREADS"),
)
SCRIPTS = [f"evaluate{name}.sh" for name in ("", "_auto", "_milebench", "_mmniah", "_mmniah_long", "_longvqa")]


class Scripts:
    """Runs commands in the checkout with stand-ins for the interpreter and for srun, and tells what they started."""

    def __init__(self, folder: Path, shell: str) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoints" / "InternVL2-V2PE"
        self.checkpoint.mkdir(parents=True)
        programs = folder / "bin"
        programs.mkdir()
        (programs / "sh").symlink_to(shell)
        (programs / "srun").symlink_to(BIN / "srun")
        (programs / "nvidia-smi").write_text('#!/bin/sh\nprintf %s "${FAKE_GPUS:-}"\n')
        (programs / "nvidia-smi").chmod(0o755)
        self.echo, self.srun_log = folder / "echo.jsonl", folder / "srun.jsonl"
        self.environ = {
            **{
                name: value
                for name, value in os.environ.items()
                if name not in SETTINGS and not name.startswith(("SLURM_", "MASTER_"))
            },
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": str(BIN / "echo_python"),
            "ECHO_OUT": str(self.echo),
            "FAKE_SRUN_LOG": str(self.srun_log),
        }

    def start(self, command: str, **environ: str) -> subprocess.Popen[str]:
        words = ["sh", "-c", command.replace("<checkpoint>", str(self.checkpoint))]
        pipe, merged = subprocess.PIPE, {**self.environ, **environ}
        program = str(self.folder / "bin" / "sh")
        return subprocess.Popen(
            words, executable=program, env=merged, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    def __call__(self, command: str, **environ: str) -> tuple[int, str]:
        process = self.start(command, **environ)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def started(self) -> list[list[str]]:
        """Return the arguments of the interpreter, call by call."""
        lines = self.echo.read_text().splitlines() if self.echo.exists() else []
        return [content["argv"] for content in map(json.loads, lines) if isinstance(content, dict)]

    def evaluated(self) -> tuple[int, list[str]]:
        """Return the processes to be started on this machine, and the flags of the evaluation."""
        [words] = self.started()
        place = words.index(str(ROOT / "tools/evaluate.py"))
        if place == 0:
            return 1, words[1:]
        assert words[:2] == ["-m", "megatron_v2pe.device.torchrun"]
        return int(words[words.index("--nproc-per-node") + 1]), words[place + 1 :]

    def flags(self) -> dict[str, str]:
        """Return the flags of the evaluation with their values; the last of each wins, as it does in the tool."""
        _, words = self.evaluated()
        assert len(words) % 2 == 0
        return dict(zip(words[::2], words[1::2], strict=True))


@pytest.fixture
def scripts(tmp_path):
    return Scripts(tmp_path, SHELLS[0])


PUBLISHED = {
    f"STRIDE=64 sh scripts/evaluate_auto.sh <checkpoint> {FLAGS}": ("general", 1),
    f"STRIDE=64 sh scripts/evaluate_milebench.sh <checkpoint> {FLAGS}": ("milebench", 1),
    f"STRIDE=64 sh scripts/evaluate_mmniah.sh <checkpoint> {FLAGS}": ("mmniah_test", 1),
    f"STRIDE=64 sh scripts/evaluate_mmniah_long.sh <checkpoint> {FLAGS}": ("mmniah_long", 8),
    **{
        f"STRIDE=64 GROUP={group} GPUS_PER_TASK={share} sh scripts/evaluate_longvqa.sh <checkpoint> {FLAGS}": (
            f"longvqa_{group}k",
            share,
        )
        for group, share in ((32, 1), (40, 2), (48, 2), (56, 4), (64, 4))
    },
    "sh scripts/evaluate.sh <checkpoint> vqa-chartqa-test": ("vqa-chartqa-test", 1),
}
"""Command as published -> what is asked, and how many processes share a copy of the model where eight GPUs are."""


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("command", PUBLISHED)
def test_published_commands_run_as_written(command, shell, tmp_path):
    scripts = Scripts(tmp_path, shell)
    status, output = scripts(command, FAKE_GPUS="GPU\n" * 8)
    assert status == 0, output
    asked, share = PUBLISHED[command]
    processes, words = scripts.evaluated()
    out = f"work_dirs/evaluate/InternVL2-V2PE/{'stride_64' if 'STRIDE' in command else 'as_trained'}"
    ours = ["--checkpoint", str(scripts.checkpoint), "--benchmarks", asked, "--out", out]
    layout = ["--context-parallel-size", str(share)] if share > 1 else []
    assert processes == 8 and words == [*ours, *layout, *(FLAGS.split() if "STRIDE" in command else [])]
    assert f"results  {out}/BENCHMARK/results.json" in output
    assert f"python tools/report.py {out} --out {out}/report" in output


def test_names_are_known_to_the_registry():
    from megatron_v2pe.evaluate.benchmark_names import expand

    for asked, _ in PUBLISHED.values():
        assert expand([asked])


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", ["", "--help", "<checkpoint> --help"])
def test_usage(script, arguments, scripts):
    status, output = scripts(f"sh scripts/{script} {arguments}")
    assert status == (0 if arguments else 2)
    assert f"scripts/{script} CHECKPOINT" in output and "GPUS_PER_TASK" in output
    assert "set -eu" not in output and "#!" not in output and scripts.started() == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"STRIDE=64 {AUTO} --rope_pos_id_stride 32", "STRIDE=64, but --rope_pos_id_stride is 32"),
        (f"STRIDE=64 {AUTO} --rope-pos-id-stride=32", "STRIDE=64, but --rope_pos_id_stride is 32"),
        ("sh scripts/evaluate_auto.sh --mode reference", "the checkpoint comes first"),
        ("sh scripts/evaluate_auto.sh no/such/folder", "no/such/folder: no such folder"),
        ("sh scripts/evaluate.sh <checkpoint>", "the task comes second"),
        ("sh scripts/evaluate.sh <checkpoint> --mode reference", "the task comes second"),
        (f"OUT=a {AUTO} --out b", "OUT=a, but --out is b"),
        (f"GPUS=3 GPUS_PER_TASK=2 {AUTO}", "GPUS=3 is not a multiple of the 2 processes"),
        (f"GPUS=two {AUTO}", "GPUS=two is not a whole number above 0"),
        (f"GPUS_PER_TASK=0 {AUTO}", "GPUS_PER_TASK=0 is not a whole number above 0"),
        (f"GPUS=4 NNODES=3 {AUTO}", "GPUS=4 is not a multiple of NNODES=3"),
        (f"GPUS=16 GPUS_PER_NODE=8 {AUTO}", "GPUS=16 are more than GPUS_PER_NODE=8"),
        (
            f"GPUS_PER_TASK=4 {AUTO} --tensor-model-parallel-size 2",
            "GPUS_PER_TASK=4, but the flags lay a copy of the model out over 2 processes",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(command, message, scripts):
    status, output = scripts(command)
    assert status == 2 and f"error: {message}" in output, output
    assert scripts.started() == []


def test_a_stride_in_the_environment_alone_is_asked_with(scripts):
    """The folder says 64, so 64 it is: named so and asked otherwise, it would deceive its reader."""
    status, output = scripts(f"STRIDE=64 {AUTO}")
    assert status == 0 and "STRIDE=64: asking with --rope_pos_id_stride 64" in output
    flags = scripts.flags()
    assert flags["--rope_pos_id_stride"] == "64" and flags["--out"].endswith("InternVL2-V2PE/stride_64")


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (f"{AUTO} --rope-pos-id-stride 1/2", "InternVL2-V2PE/stride_1-2"),
        (f"{AUTO}/", "InternVL2-V2PE/as_trained"),
        (f"{AUTO}/iter_0000260", "InternVL2-V2PE_iter_0000260/as_trained"),
        (f"OUT='/out of/here' {AUTO}", "/out of/here"),
        (f"{AUTO} --out there", "there"),
    ],
)
def test_the_output_folder(command, out, scripts):
    (scripts.checkpoint / "iter_0000260").mkdir()
    status, output = scripts(command)
    assert status == 0, output
    folder = scripts.flags()["--out"]
    assert folder == out or folder == f"work_dirs/evaluate/{out}"
    assert f"answers  {folder}/BENCHMARK" in output


@pytest.mark.parametrize(
    ("settings", "gpus", "processes", "layout"),
    [
        ("", 0, 1, {}),
        ("GPUS_PER_TASK=2", 0, 2, {"--context-parallel-size": "2"}),
        ("GPUS=4 GPUS_PER_TASK=2", 0, 4, {"--context-parallel-size": "2"}),
        ("GPUS_PER_TASK=2", 3, 2, {"--context-parallel-size": "2"}),
        ("GPUS_PER_NODE=4", 8, 4, {}),
        ("GPUS=8 NNODES=2 NODE_RANK=0", 4, 4, {}),
    ],
)
def test_processes(settings, gpus, processes, layout, scripts):
    status, output = scripts(f"{settings} {AUTO}", FAKE_GPUS="GPU\n" * gpus)
    assert status == 0, output
    assert scripts.evaluated()[0] == processes
    flags = scripts.flags()
    assert {name: value for name, value in flags.items() if "parallel" in name} == layout
    assert ("using 2 of 3 GPUs" in output) == (gpus == 3)


def test_too_few_gpus_for_a_copy_are_refused(scripts):
    status, output = scripts(f"GPUS_PER_TASK=4 {AUTO}", FAKE_GPUS="GPU\n")
    assert status == 2 and "a copy of the model takes 4 processes, but there are 1 GPUs" in output


@pytest.mark.parametrize(
    "flags", ["--tensor-model-parallel-size 2", "--pipeline-model-parallel-size=2 --mode reference"]
)
def test_a_layout_of_the_users_own_is_left_alone(flags, scripts):
    status, output = scripts(f"sh scripts/evaluate_mmniah_long.sh <checkpoint> {flags}")
    assert status == 0, output
    processes, words = scripts.evaluated()
    assert processes == 2 and words[-len(flags.split()) :] == flags.split()
    assert "--context-parallel-size" not in words


def test_several_at_once_do_not_meet(scripts):
    """On one machine the launcher takes a free port unless one is named."""
    scripts(f"GPUS=2 {AUTO}")
    scripts(f"GPUS=2 MASTER_PORT=4711 {AUTO}")
    free, named = scripts.started()
    assert "--master-port" not in free and named[named.index("--master-port") + 1] == "4711"


@pytest.mark.parametrize("shell", SHELLS)
def test_with_a_partition_srun_starts_them(shell, tmp_path):
    scripts = Scripts(tmp_path, shell)
    settings = (
        "PARTITION='my part' GPUS=4 GPUS_PER_NODE=2 CPUS_PER_TASK=5 QUOTA_TYPE=spot SRUN_ARGS='--time=1:00 --exclusive'"
    )
    command = f"{settings} STRIDE=64 GROUP=40 GPUS_PER_TASK=2 sh scripts/evaluate_longvqa.sh <checkpoint> {FLAGS}"
    status, output = scripts(command)
    assert status == 0, output
    [call] = [json.loads(line) for line in scripts.srun_log.read_text().splitlines()]
    out = "work_dirs/evaluate/InternVL2-V2PE/stride_64"
    assert call == [
        *("--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=5", "--partition=my part"),
        *("--quotatype=spot", "--job-name=megatron-v2pe-evaluate", "--gres=gpu:2", "--kill-on-bad-exit=1"),
        *("--time=1:00", "--exclusive", str(BIN / "echo_python"), "-u", str(ROOT / "tools/evaluate.py")),
        *("--checkpoint", str(scripts.checkpoint), "--benchmarks", "longvqa_40k", "--out", out),
        *("--context-parallel-size", "2", *FLAGS.split()),
    ]


def test_the_interpreter_may_be_on_the_nodes_alone(scripts):
    status, _ = scripts(f"PARTITION=p GPUS=1 {AUTO}", PYTHON="/on/the/nodes/python")
    assert status != 0  # the stand-in for srun finds none either
    [call] = [json.loads(line) for line in scripts.srun_log.read_text().splitlines()]
    assert "/on/the/nodes/python" in call and str(ROOT / "tools/evaluate.py") in call


def test_a_flag_that_is_none_is_refused_before_anything_is_started(scripts):
    status, output = scripts(f"GPUS=2 {AUTO} --rope_pos_id_strid 64")
    assert status == 2 and "error: unrecognized arguments: --rope_pos_id_strid 64" in output
    assert scripts.started() == []


def test_as_a_batch_script_it_finds_the_checkout(scripts):
    spool = scripts.folder / "spool"
    spool.mkdir()
    shutil.copy(ROOT / "scripts" / "evaluate_auto.sh", spool / "slurm_script")
    job = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2", "SLURM_SUBMIT_DIR": str(ROOT), "PARTITION": "p", "GRES": "none"}
    status, output = scripts(f"sh {spool}/slurm_script <checkpoint>", **job)
    assert status == 0, output
    [call] = [json.loads(line) for line in scripts.srun_log.read_text().splitlines()]
    assert "--ntasks=2" in call and "--partition=p" not in call
    ports = {json.loads(line)["environ"]["MASTER_PORT"] for line in scripts.echo.read_text().splitlines()}
    assert ports == {None}  # the processes choose one by the numbers of job and step


def test_a_failure_is_told_and_passed_on(scripts):
    status, output = scripts(AUTO, ECHO_STATUS="7")
    assert status == 7 and "ended with status 7\n" in output
    status, output = scripts(AUTO, ECHO_STATUS="7", OUT=str(scripts.folder))
    assert status == 7 and "the same command goes on" in output
    assert "results " not in output


def catches(process, number):
    """Tell whether a process has a handler of a signal."""
    status = Path(f"/proc/{process}/status")
    if not status.exists():  # a system that does not say
        return True
    (caught,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_signal_reaches_what_was_started(shell, tmp_path):
    scripts = Scripts(tmp_path, shell)
    process = scripts.start(f"exec {AUTO}", ECHO_SECONDS="600")
    deadline = time.monotonic() + 600
    while not (scripts.started() and catches(process.pid, signal.SIGTERM)):  # the shell may be behind what it started
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 5, output
    assert json.loads(scripts.echo.read_text().splitlines()[-1]) == "terminated"


@pytest.mark.slow
def test_two_processes_from_end_to_end(golden, scripts):
    """On synthetic sets and a tiny checkpoint; the same command again asks nothing."""
    hf = scripts.folder / "hf"
    shutil.copytree(golden / "reference_checkpoint", hf)
    write_tokenizer(hf)
    for name in ("chartqa_human", "pope"):
        write_benchmark(scripts.folder, name, questions=3)
    command = f"sh {ROOT}/scripts/evaluate.sh {hf} chartqa_human,pope"
    command += f" --root {scripts.folder} --converted-dir {scripts.folder}/converted"
    command += " --window 100000 --max-num 1"
    settings = {
        "OUT": str(scripts.folder / "out"),
        "GPUS": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHON": shared_warm_python(),
        "PYTHON_EXEC": shared_warm_python(),  # of torchrun's workers
        "PYTHONPATH": str(ROOT),
        "MASTER_PORT": str(free_port()),
    }
    texts = []
    for _ in range(2):
        status, output = scripts(command, **settings)
        assert status == 0, output[-3000:]
        assert "ChartQA human" in output and "INCOMPLETE" not in output
        files = sorted((scripts.folder / "out").glob("*/answers-*.jsonl"))
        assert [file.name for file in files] == ["answers-00000.jsonl", "answers-00001.jsonl"] * 2
        texts.append([file.read_text() for file in files])
    assert texts[0] == texts[1]
    result = json.loads((scripts.folder / "out" / "pope" / "results.json").read_text())
    assert result["answered"] == result["questions"] == 6
    run = json.loads((scripts.folder / "out" / "run.json").read_text())
    assert run["settings"]["rope_pos_id_version"] == "default"
