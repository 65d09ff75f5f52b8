"""Reading the launcher's variables."""

from __future__ import annotations

import signal

import pytest

from megatron_v2pe.device import launch
from megatron_v2pe.device.device import Device
from megatron_v2pe.device.launch import World, first_host, read_environment
from megatron_v2pe.errors import ConfigError, DataError


def test_torchrun():
    world = read_environment(
        {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "99"}
    )
    assert world == World(3, 1, 4, "a", 99, "torchrun")


def test_slurm():
    env = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_NODELIST": "gpu[003-006],login"}
    world = read_environment(env)
    assert (world.rank, world.local_rank, world.world_size) == (5, 1, 8)
    assert (world.master_addr, world.launcher, world.one_machine) == ("gpu003", "slurm", False)


def test_every_slurm_job_and_step_has_a_port_of_its_own():
    env = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_NODELIST": "n[1-2]"}
    ports = {
        read_environment({**env, "SLURM_JOB_ID": str(4_000_000 + job), "SLURM_STEP_ID": str(step)}).master_port
        for job in range(50)
        for step in range(4)
    }
    assert len(ports) == 200 and min(ports) >= 20000 and max(ports) < 32000
    assert read_environment({**env, "SLURM_JOB_ID": "9", "MASTER_PORT": "4711"}).master_port == 4711


@pytest.mark.parametrize(
    ("env", "address"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "here"}, "127.0.0.1"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "there"}, "there"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "127.0.0.1"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODELIST": "n7"}, "127.0.0.1"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_NODELIST": "n[7-8]"}, "n7"),
    ],
)
def test_processes_of_one_machine_meet_on_loopback(env, address):
    world = read_environment(env)
    assert world.master_addr == address and world.one_machine == (address == "127.0.0.1")


def test_a_port_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="MASTER_PORT=70000 is not a port"):
        read_environment({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "70000"})
    assert read_environment({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "0"}).world_size == 1, "no meeting, no port"


def test_torchrun_inside_slurm_wins():
    env = {"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "5", "SLURM_NTASKS": "8"}
    assert read_environment(env).launcher == "torchrun"


def test_single_process():
    assert read_environment({}) == World()
    assert read_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}).launcher == "single"


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[07,09-11]", "gpu07"), ("a-b[1-4],c", "a-b1")],
)
def test_first_host(nodelist, host):
    assert first_host(nodelist) == host


def test_a_variable_that_is_no_number_is_named():
    with pytest.raises(ConfigError, match="WORLD_SIZE='two'"):
        read_environment({"RANK": "0", "WORLD_SIZE": "two"})


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ConfigError, match="rank 4 is outside a world of 4"):
        read_environment({"RANK": "4", "WORLD_SIZE": "4"})


def test_device_choice():
    assert Device.choose("cpu").backend == "gloo"
    assert Device("cuda", 1).backend == "nccl"
    with pytest.raises(ConfigError, match="none of auto, cpu, cuda"):
        Device.choose("tpu")


def test_a_reader_that_ends_after_the_error_does_not_take_its_place(monkeypatch):
    """A machine without memory ends several: the second signal comes while the first is reported."""

    def lost(number, frame):
        raise RuntimeError("DataLoader worker (pid 8) is killed by signal: Killed.")

    monkeypatch.setattr(launch, "initialize", lambda *_: None)
    monkeypatch.setattr(launch, "shutdown", lambda: None)
    monkeypatch.setattr(launch.watchdog, "plain", lambda error, alone: signal.raise_signal(signal.SIGCHLD) or error)
    usual = signal.signal(signal.SIGCHLD, lost)
    try:
        with pytest.raises(DataError, match="no such image"), launch.joined(World(), Device("cpu"), 1.0):
            raise DataError("no such image")
    finally:
        signal.signal(signal.SIGCHLD, usual)
