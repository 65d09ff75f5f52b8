"""The CPU shims: every target exists, every one is restored, none is active on CUDA."""

from __future__ import annotations

import pytest
import torch

from megatron_v2pe.device import mcore_shims
from megatron_v2pe.device.device import Device


@pytest.fixture
def installed_shims():
    was_installed = mcore_shims.installed()
    mcore_shims.install()
    yield
    if not was_installed:
        mcore_shims.uninstall()


@pytest.mark.parametrize("shim", mcore_shims.SHIMS, ids=lambda shim: shim.target)
def test_target_still_exists(shim):
    owner, name = shim.resolve()
    assert hasattr(owner, name)
    assert shim.reason


@pytest.mark.parametrize("shim", mcore_shims.SHIMS, ids=lambda shim: shim.target)
def test_install_replaces_and_uninstall_restores(shim):
    mcore_shims.uninstall()
    owner, name = shim.resolve()
    before = getattr(owner, name)
    held_before = name in vars(owner)
    mcore_shims.install()
    assert getattr(owner, name) is not before
    mcore_shims.uninstall()
    assert getattr(owner, name) is before
    assert (name in vars(owner)) == held_before


def test_installing_twice_is_installing_once(installed_shims):
    first = torch.cuda.current_device
    mcore_shims.install()
    assert torch.cuda.current_device is first


def test_factories_asked_for_cuda_create_cpu_tensors(installed_shims):
    from megatron.core.pipeline_parallel import schedules

    assert schedules.torch.zeros([], dtype=torch.int, device="cuda").device.type == "cpu"
    assert schedules.torch.ones(2, device=torch.device("cuda", 0)).device.type == "cpu"
    assert schedules.torch.ones(2).device.type == "cpu"
    assert schedules.torch.nn is torch.nn


def test_cpu_tensors_answer_as_megatron_expects(installed_shims):
    tensor = torch.zeros(2)
    assert tensor.cuda() is tensor
    assert tensor.type() == "torch.cuda.FloatTensor"
    assert tensor.bfloat16().type() == "torch.cuda.BFloat16Tensor"
    assert tensor.type(torch.float64).dtype == torch.float64
    assert torch.cuda.current_device() == torch.device("cpu")


def test_there_is_a_stream_to_wait_on(installed_shims):
    stream = torch.cuda.current_stream()
    assert stream.wait_event(None) is None and stream.wait_stream(torch.cuda.current_stream()) is None
    assert stream.synchronize() is None


def test_cuda_generator_is_the_cpu_generator(installed_shims):
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(first, torch.rand(3))


def test_activating_cuda_installs_no_shim(monkeypatch):
    mcore_shims.uninstall()
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    Device("cuda", 1).activate()
    assert chosen == [1]
    assert not mcore_shims.installed()


def test_cuda_refuses_a_process_with_shims(installed_shims):
    with pytest.raises(AssertionError, match="shims are active"):
        Device("cuda", 0).activate()
