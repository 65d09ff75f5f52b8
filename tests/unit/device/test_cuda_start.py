"""What is settled before CUDA starts, with a machine of made-up cards in CUDA's place."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from megatron_v2pe.device import cuda_start
from megatron_v2pe.device.cuda_start import RANKS_PER_DEVICE
from megatron_v2pe.device.device import Device
from megatron_v2pe.errors import ConfigError


@pytest.fixture
def cards(monkeypatch):
    """A machine with two cards of 80 GiB of the named compute capability."""

    def make(count=2, capability=(9, 0), name="Some Card"):
        properties = [
            SimpleNamespace(uuid=f"uuid-{index}", name=name, total_memory=80 * 2**30, major=capability[0], minor=0)
            for index in range(count)
        ]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties[index])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)

    for variable in (RANKS_PER_DEVICE, "NCCL_HOSTID", "LOCAL_WORLD_SIZE", *cuda_start.ALLOCATOR):
        monkeypatch.delenv(variable, raising=False)
    make()
    return make


@pytest.mark.parametrize(("version", "name"), [("2.13.0+cpu", 0), ("2.11.0+cu130", 0), ("2.9.0", 0), ("2.8.1", 1)])
def test_the_allocator_grows_segments_under_the_name_its_version_reads(version, name, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    environ = {}
    cuda_start.grow_segments(environ)
    assert environ == {cuda_start.ALLOCATOR[name]: "expandable_segments:True"}


@pytest.mark.parametrize("name", cuda_start.ALLOCATOR)
def test_what_the_user_has_set_stays(name):
    environ = {name: "max_split_size_mb:512"}
    cuda_start.grow_segments(environ)
    assert environ == {name: "max_split_size_mb:512"}


def test_the_variable_is_set_where_cuda_is_chosen_and_nowhere_else(cards, monkeypatch):
    for name in cuda_start.ALLOCATOR:
        monkeypatch.setenv(name, "")  # so that the fixture's end restores them
        monkeypatch.delenv(name)
    Device.choose("cpu")
    assert not any(name in os.environ for name in cuda_start.ALLOCATOR)
    assert Device.choose("auto", 1) == Device("cuda", 1)
    assert os.environ[cuda_start.ALLOCATOR[0]] == "expandable_segments:True"
    monkeypatch.delenv(cuda_start.ALLOCATOR[0])


def test_more_ranks_than_cards(cards, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    with pytest.raises(
        ConfigError, match=r"local rank 3 has no GPU: .* shows 2 and 4 ranks were started on it. Start 2"
    ):
        Device.choose("cuda", 3)
    monkeypatch.setenv(RANKS_PER_DEVICE, "2")
    assert [Device.choose("cuda", rank).index for rank in range(4)] == [0, 0, 1, 1]
    assert Device("cuda", 1).memory_bytes() == 40 * 2**30 and Device("cpu").memory_bytes() is None


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_ranks_per_device_is_a_whole_number(text, cards, monkeypatch):
    monkeypatch.setenv(RANKS_PER_DEVICE, text)
    with pytest.raises(ConfigError, match=f"{RANKS_PER_DEVICE}={text} is not a whole number"):
        cuda_start.ranks_per_device()


def test_two_ranks_that_take_one_card(cards, monkeypatch):
    store = dist.HashStore()
    cuda_start.claim_device(store, 0, world_size=3)
    cuda_start.claim_device(store, 1, world_size=3)
    with pytest.raises(ConfigError, match=r"2 of 3 ranks took one GPU, device 0 of the 2 that .* shows"):
        cuda_start.claim_device(store, 0, world_size=3)


def test_ranks_that_share_a_card_on_purpose(cards, monkeypatch):
    store = dist.HashStore()
    monkeypatch.setenv(RANKS_PER_DEVICE, "2")
    for _ in range(2):
        cuda_start.claim_device(store, 0, world_size=3)
    with pytest.raises(ConfigError, match="3 of 3 ranks took one GPU"):
        cuda_start.claim_device(store, 0, world_size=3)
    monkeypatch.delenv(RANKS_PER_DEVICE)
    for rank in range(2):  # NCCL's own way: ranks that say they are hosts
        monkeypatch.setenv("NCCL_HOSTID", f"host{rank}")
        cuda_start.claim_device(store, 1, world_size=2)


def test_sharing_ranks_look_like_hosts_to_nccl(cards, monkeypatch):
    names = ("NCCL_HOSTID", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    cuda_start.look_like_hosts(1)
    assert not any(name in os.environ for name in names)
    monkeypatch.setenv(RANKS_PER_DEVICE, "2")
    monkeypatch.setenv("NCCL_P2P_DISABLE", "0")
    cuda_start.look_like_hosts(1)
    assert os.environ["NCCL_HOSTID"].endswith("-1") and os.environ["NCCL_SHM_DISABLE"] == "1"
    assert os.environ["NCCL_P2P_DISABLE"] == "0"  # the user's
    for name in names:
        monkeypatch.delenv(name)


def test_a_card_without_bf16(cards):
    cards(capability=(7, 0), name="Tesla V100-SXM2-16GB")
    with pytest.raises(ConfigError, match=r"capability 8.0 or more, Tesla V100-SXM2-16GB has 7.0; use .* fp32"):
        cuda_start.check_precision("bf16", 0)
    cuda_start.check_precision("fp32", 0)
    cards(capability=(8, 0))
    cuda_start.check_precision("bf16", 0)
