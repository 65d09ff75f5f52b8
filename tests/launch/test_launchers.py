"""The launch scripts: what they ask of srun and torchrun, and that their processes find each other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from helpers.tool_runs import free_port
from helpers.warm_python import shared_warm_python

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("examples/**/*.sh")])
SHELL = shutil.which("dash") or "sh"
SHELLS = [SHELL, *filter(None, [shutil.which("bash")])]
SECONDS = 600
"""Seconds for a launch to end, however slow the machine is."""

NAMES = {
    "internvl_chat_v2_internlm2_2b_dynamic_res_baseline.sh": "internvl2_2b_baseline_32k",
    "internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_32k.sh": "internvl2_2b_v2pe_32k",
    "internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_256k.sh": "internvl2_2b_v2pe_256k",
}


class Launch:
    """Runs a script by the plainest shell there is, with the stand-ins for srun and for the trainer."""

    def __init__(self, folder: Path) -> None:
        self.srun_log, self.out = folder / "srun.jsonl", folder / "probe.jsonl"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
        for name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "GPUS",
            "GPUS_PER_NODE",
            "PARTITION",
            "OMP_NUM_THREADS",
        ):
            kept.pop(name, None)
        self.environ = {
            **kept,
            "PATH": f"{HERE / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHON": str(HERE / "bin" / "probe_python"),
            "REAL_PYTHON": shared_warm_python(),
            "PYTHON_EXEC": shared_warm_python(),  # of torchrun's workers
            "FAKE_SRUN_LOG": str(self.srun_log),
            "PROBE_OUT": str(self.out),
            "MASTER_PORT": str(free_port()),
        }

    def start(self, script: str, *arguments: str, shell: str = SHELL, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [shell, str(ROOT / script), *arguments],
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, script: str, *arguments: str, shell: str = SHELL, **environ: str) -> tuple[int, str]:
        process = self.start(script, *arguments, shell=shell, **environ)
        output, _ = process.communicate(timeout=SECONDS)
        return process.returncode, output

    def srun_calls(self) -> list[list[str]]:
        if not self.srun_log.exists():
            return []
        return [json.loads(line) for line in self.srun_log.read_text().splitlines()]

    def probes(self) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.out.read_text().splitlines()]
        return sorted(lines, key=lambda line: line["rank"])


def terminate_once_running(job: subprocess.Popen[str], mark: Path) -> None:
    """Send SIGTERM when the mark is there; the job must then end in good order."""
    deadline = time.monotonic() + SECONDS
    while not mark.exists() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=SECONDS)
    assert job.returncode == 0, output


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_plain_sh(script, shell):
    assert script.read_text().startswith("#!/bin/sh\n")
    check = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def test_srun_starts_processes_that_find_each_other(launch):
    status, output = launch("scripts/train_srun.sh", "--recipe", "debug", "a b", GPUS="2", GRES="none")
    assert status == 0, output
    probes = launch.probes()
    assert [probe["rank"] for probe in probes] == [0, 1]
    assert all(probe["sum"] == 3.0 and probe["world_size"] == 2 for probe in probes)
    assert all(probe["launcher"] == "slurm" for probe in probes)
    assert all(probe["port"] == int(launch.environ["MASTER_PORT"]) for probe in probes)
    assert all(probe["argv"] == ["--recipe", "debug", "a b"] for probe in probes)  # words stay whole
    assert all(probe["threads"] == "12" for probe in probes)


@pytest.mark.parametrize("shell", SHELLS)
def test_srun_options_follow_the_environment(launch, shell):
    status, output = launch(
        "scripts/train_srun.sh",
        "x",
        shell=shell,
        PYTHON="/bin/true",
        PARTITION="my part",
        GPUS="4",
        GPUS_PER_NODE="2",
        CPUS_PER_TASK="5",
        QUOTA_TYPE="spot",
        SRUN_ARGS="--time=1:00:00 --exclusive",
        JOB_NAME="mine",
        SIGNAL_SECONDS="60",
    )
    assert status == 0, output
    [call] = launch.srun_calls()
    assert call == [
        "--nodes=2",
        "--ntasks=4",
        "--ntasks-per-node=2",
        "--cpus-per-task=5",
        "--partition=my part",
        "--quotatype=spot",
        "--job-name=mine",
        "--signal=TERM@60",
        "--gres=gpu:2",
        "--kill-on-bad-exit=1",
        "--time=1:00:00",
        "--exclusive",
        "/bin/true",
        "-u",
        str(ROOT / "tools/train.py"),
        "x",
    ]


def test_site_specific_options_are_not_passed_unless_asked_for(launch):
    launch("scripts/train_srun.sh", PYTHON="/bin/true")
    [call] = launch.srun_calls()
    options = [word.partition("=")[0] for word in call]
    assert "--quotatype" not in options and "--partition" not in options
    assert {"--ntasks=32", "--nodes=4", "--ntasks-per-node=8", "--gres=gpu:8"} <= set(call)


def test_inside_a_job_the_allocation_is_left_alone(launch):
    environ = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "16", "PARTITION": "p", "QUOTA_TYPE": "spot"}
    launch("scripts/train_srun.sh", PYTHON="/bin/true", **environ)
    [call] = launch.srun_calls()
    options = {word.partition("=")[0] for word in call}
    assert "--ntasks=16" in call and "--nodes=2" in call
    assert not options & {"--partition", "--quotatype", "--job-name", "--signal"}


def test_as_a_batch_script_it_finds_the_checkout(launch, tmp_path):
    spool = tmp_path / "spool" / "job17"
    spool.mkdir(parents=True)
    script = shutil.copy(ROOT / "scripts" / "train_srun.sh", spool / "slurm_script")
    text = Path(script).read_text()
    assert "#SBATCH --requeue\n" in text and "#SBATCH --signal=TERM@300\n" in text
    command = [SHELL, script, "x"]
    environ = {**launch.environ, "PYTHON": "/bin/true", "SLURM_SUBMIT_DIR": str(ROOT)}
    assert subprocess.run(command, env=environ, cwd=tmp_path).returncode == 0
    assert str(ROOT / "tools/train.py") in launch.srun_calls()[0]
    environ["SLURM_SUBMIT_DIR"] = str(tmp_path)
    refused = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2 and "call sbatch in the root of the checkout" in refused.stderr


def test_processes_that_do_not_fill_the_nodes_are_refused(launch):
    status, output = launch("scripts/train_srun.sh", GPUS="12", GPUS_PER_NODE="8")
    assert status == 2 and "GPUS=12 is not a multiple of GPUS_PER_NODE=8" in output
    assert launch.srun_calls() == []


def test_a_failing_process_fails_the_job(launch):
    status, _ = launch("scripts/train_srun.sh", "--fail-on-rank", "0", GPUS="1", GRES="none")
    assert status == 3


def test_sigterm_saves_and_the_requeued_job_goes_on(launch, tmp_path):
    """Slurm signals the processes, requeues the job and runs the same command: it begins where the first ended.

    The probe stands for the trainer, whose own saving and resuming the end-to-end tests show.
    """
    folder = tmp_path / "run"
    folder.mkdir()
    last = 0
    for restarts in range(2):
        (folder / "running").unlink(missing_ok=True)
        job = launch.start(
            "scripts/train_srun.sh",
            "--count-in",
            str(folder),
            SLURM_JOB_ID="17",
            SLURM_NTASKS="2",
            SLURM_RESTART_COUNT=str(restarts),
            GRES="none",
            MASTER_PORT=str(free_port()),
        )
        terminate_once_running(job, folder / "running")
        one, two = [probe for probe in launch.probes() if probe["counted"][0] == last]
        assert one["counted"] == two["counted"]  # both processes stop after the same step
        last = one["counted"][1]
        assert last > one["counted"][0] and (folder / "saved").read_text() == str(last)
    assert len(launch.srun_calls()) == 2 and launch.srun_calls()[0] == launch.srun_calls()[1]


def test_sigterm_to_one_process_stops_all(launch, tmp_path):
    """As when one node of several is preempted."""
    job = launch.start("scripts/train_srun.sh", "--count-in", str(tmp_path), GPUS="2", GRES="none", FAKE_SRUN_ONE="1")
    terminate_once_running(job, tmp_path / "running")
    one, two = launch.probes()
    assert one["counted"] == two["counted"]


@pytest.mark.parametrize("script", NAMES)
@pytest.mark.parametrize("launcher", ["slurm", "pytorch"])
def test_published_script_names_start_their_recipe(script, launcher, launch):
    arguments = ["--dry-run", "--learning_rate", "1e-5"]
    status, output = launch(
        f"examples/internvl2_2b/{script}", *arguments, PYTHON=shared_warm_python(), LAUNCHER=launcher, GPUS="32"
    )
    assert status == 0, output
    settings = yaml.safe_load(output)
    assert settings["checkpoint"]["save"] == f"work_dirs/{NAMES[script]}"
    assert settings["optimizer"]["lr"] == 1e-5
    assert launch.srun_calls() == []  # a look at the settings asks nothing of Slurm


def test_published_script_goes_through_srun(launch):
    script = "internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_256k.sh"
    status, output = launch(f"examples/internvl2_2b/{script}", "--x", PYTHON="/bin/true", PARTITION="p", GPUS="32")
    assert status == 0, output
    assert launch.srun_calls()[0][-3:] == ["--recipe", "internvl2_2b_v2pe_256k", "--x"]


def test_an_unknown_launcher_is_refused(launch):
    status, output = launch(f"examples/internvl2_2b/{next(iter(NAMES))}", LAUNCHER="mpi")
    assert status == 2 and "LAUNCHER=mpi is none of slurm, pytorch" in output


def test_torchrun_on_one_machine(launch):
    status, output = launch("scripts/train_torchrun.sh", "--recipe", "debug", GPUS_PER_NODE="2")
    assert status == 0, output
    probes = launch.probes()
    assert [(probe["rank"], probe["local_rank"], probe["sum"]) for probe in probes] == [
        (0, 0, 3.0),
        (1, 1, 3.0),
    ]
    assert all(probe["launcher"] == "torchrun" and probe["argv"] == ["--recipe", "debug"] for probe in probes)


def test_two_nodes(launch):
    """Two launchers, as two machines would start them, meet and make one world."""
    nodes = [
        launch.start(
            "scripts/train_torchrun.sh",
            NNODES="2",
            GPUS_PER_NODE="1",
            NODE_RANK=str(rank),
            MASTER_ADDR="localhost",
            RUN_ID="of-both",
        )
        for rank in range(2)
    ]
    outputs = [node.communicate(timeout=SECONDS)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    probes = launch.probes()
    assert [(probe["rank"], probe["local_rank"], probe["sum"]) for probe in probes] == [
        (0, 0, 3.0),
        (1, 0, 3.0),
    ]


def test_several_nodes_need_to_know_where_they_meet(launch):
    del launch.environ["MASTER_PORT"]
    status, output = launch("scripts/train_torchrun.sh", NNODES="2", GPUS_PER_NODE="1", NODE_RANK="1")
    assert status == 2 and output.count("\n") == 1
    assert "2 machines need MASTER_ADDR" in output and "MASTER_PORT" in output and "RUN_ID" in output


@pytest.mark.parametrize("script", ["train_torchrun.sh", "train_srun.sh"])
def test_a_port_in_use_is_told_at_once(script, launch):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        began = time.monotonic()
        status, output = launch(f"scripts/{script}", GPUS="2", GRES="none", MASTER_PORT=str(port))
    took = time.monotonic() - began
    # Slurm tells how the other process ended: by SIGTERM, or SIGKILL where that came too late.
    expected = (2,) if script == "train_torchrun.sh" else (2, 143, 137)
    assert status in expected and f"port {port} on " in output and "set it to one that is free" in output, output
    assert took < 200, took  # the run's timeout is 600 s; measured: 3 s and 4 s on two busy cores
