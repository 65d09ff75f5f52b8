"""Reading the launcher's variables."""

from __future__ import annotations

import pytest

from megatron_v2pe.device.device import Device
from megatron_v2pe.device.launch import World, first_host, read_environment
from megatron_v2pe.errors import ConfigError


def test_torchrun():
    world = read_environment(
        {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "99"}
    )
    assert world == World(3, 1, 4, "a", 99, "torchrun")


def test_slurm():
    env = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_NODELIST": "gpu[003-006],login"}
    assert read_environment(env) == World(5, 1, 8, "gpu003", 34229, "slurm")


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
