"""The choice of an attention kernel on CUDA, shown on the CPU: its order, the test of each, what is said of it."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import pytest
import torch

from helpers.attention import SCALE, WIDTH, dense_results, random_inputs
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.parallel.attention import flash, kernel_choice
from megatron_v2pe.parallel.attention.attention_backend import ATTENTION_BACKENDS, check_backend, usable
from megatron_v2pe.parallel.attention.block import AttentionBlock, CpuFlash, Reference
from megatron_v2pe.parallel.attention.chunked import Chunked
from megatron_v2pe.parallel.attention.cudnn import Cudnn
from megatron_v2pe.parallel.attention.flash import FlashAttn2, FlashAttn3, FlashAttn4, TorchFlash
from megatron_v2pe.parallel.attention.kernel_choice import (
    candidates,
    first_that_passes,
    kernel_for,
    probed,
)
from megatron_v2pe.parallel.attention.mixed_kernels import ALWAYS, DENSE, Mixed
from megatron_v2pe.parallel.config import ParallelConfig

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


class OwnOutput(Reference):
    """Right by itself, but its backward pass forms output and log-sum-exp again and ignores those it is given."""

    def backward(self, gradient, query, key, value, output, lse, block):
        return super().backward(gradient, query, key, value, *self.forward(query, key, value, block), block)


class OwnSums(Reference):
    """Takes the merged output, not the merged log-sum-exp."""

    def backward(self, gradient, query, key, value, output, lse, block):
        return super().backward(gradient, query, key, value, output, self.forward(query, key, value, block)[1], block)


class Blind(Reference):
    """Forgets the mask."""

    def forward(self, query, key, value, block):
        return super().forward(query, key, value, AttentionBlock(block.query_lens, block.key_lens, False, block.scale))


class Turned(Reference):
    """Gives its log-sum-exp the other way round."""

    def forward(self, query, key, value, block):
        output, lse = super().forward(query, key, value, block)
        return output, lse.t()


class Refusing(Reference):
    """Refuses."""

    def forward(self, query, key, value, block):
        raise RuntimeError(f"head dimension {query.shape[-1]} is not supported\nby this kernel")


class Nothing(Reference):
    """Answers what is not a number."""

    def forward(self, query, key, value, block):
        output, lse = super().forward(query, key, value, block)
        return output * float("nan"), lse


@HALVES
@pytest.mark.parametrize("kernel", [CpuFlash(), Reference(), Chunked()], ids=["cpu_flash", "reference", "chunked"])
@pytest.mark.parametrize(("width", "ratio"), [(64, 1), (128, 2), (80, 8)])
def test_a_right_kernel_passes(kernel, dtype, width, ratio):
    assert probed(kernel, CPU, dtype, width, ratio, merges=True) is None


@HALVES
@pytest.mark.parametrize("kernel", [OwnOutput(), OwnSums()], ids=["own output", "own sums"])
def test_a_kernel_that_forms_its_own_log_sum_exp_is_not_used_in_a_ring(kernel, dtype):
    assert probed(kernel, CPU, dtype, 64, 2, merges=False) is None
    problem = probed(kernel, CPU, dtype, 64, 2, merges=True)
    assert "gradient of the query of one of two merged blocks differs from the reference by" in problem
    assert float(problem.partition(" by ")[2].split()[0]) > 5 * kernel_choice.TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (Blind(), "output of a causal block differs from the reference by"),
        (Turned(), r"log-sum-exp of a causal block has shape \(4, 300\), not \(300, 4\)"),
        (Refusing(), "it refuses: RuntimeError: head dimension 64 is not supported$"),
        (Nothing(), "output of a causal block differs from the reference by nan"),
        (Mixed(CpuFlash(), Blind(), DENSE), "output of a causal block differs"),
        (Mixed(Refusing(), CpuFlash(), DENSE), "it refuses"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_wrong_kernel_does_not_pass_and_is_told_why(kernel, words):
    problem = probed(kernel, CPU, torch.bfloat16, 64, 2, merges=False)
    assert problem is not None and re.search(words, problem), problem


def test_out_of_memory_is_no_refusal():
    class Full(Reference):
        def forward(self, query, key, value, block):
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        probed(Full(), CPU, torch.bfloat16, 64, 2, merges=False)


def test_the_next_kernel_is_taken_and_said(caplog):
    order = [("first", Refusing()), ("second", OwnSums()), ("third", CpuFlash()), ("last", Chunked())]
    with caplog.at_level(logging.WARNING, logger="megatron_v2pe"):
        assert first_that_passes(order, CPU, torch.bfloat16, 80, 2, False)[0] == "second"
        assert first_that_passes(order, CPU, torch.bfloat16, 80, 2, True)[0] == "third"
        assert first_that_passes(order[:2] + order[3:], CPU, torch.bfloat16, 80, 2, True)[0] == "last"
    first, *_ = caplog.messages
    assert first == (
        "attention kernel not used on cpu for bfloat16 heads of 80, 2 of them a group: first: "
        "it refuses: RuntimeError: head dimension 80 is not supported"
    )
    assert "in a ring: second: gradient of the query of one of two merged blocks" in caplog.messages[2]


@pytest.fixture
def card(monkeypatch):
    """A card of a given capability, with given flash-attn packages; nothing runs on it."""

    def make(capability, *generations):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
        monkeypatch.setattr(flash, "package", lambda number: object() if number in generations else None)
        monkeypatch.setattr(kernel_choice, "_chosen", {})

    return make


def kinds(backend, dtype=torch.bfloat16):
    """Kernels in order; of a mixed one both and the rule."""
    found = []
    for _, kernel in ATTENTION_BACKENDS.get(backend).kernels(CARD, dtype):
        if isinstance(kernel, Mixed):
            found.append((type(kernel.dense), type(kernel.varlen), kernel.rule))
        else:
            found.append(type(kernel))
    return found


@pytest.mark.parametrize(
    ("capability", "generations", "expected"),
    [
        ((9, 0), (), [(Cudnn, TorchFlash, DENSE), TorchFlash, Chunked]),
        ((9, 0), (2,), [(Cudnn, FlashAttn2, DENSE), (Cudnn, TorchFlash, DENSE), FlashAttn2, TorchFlash, Chunked]),
        ((9, 0), (3, 4), [FlashAttn3, (Cudnn, TorchFlash, DENSE), TorchFlash, Chunked]),
        ((10, 0), (2, 3, 4), [FlashAttn4, (Cudnn, FlashAttn2, DENSE), (Cudnn, TorchFlash, DENSE), FlashAttn2,
                              TorchFlash, Chunked]),
        ((8, 0), (2, 3, 4), [FlashAttn2, TorchFlash, Chunked]),
        ((7, 5), (2,), [TorchFlash, Chunked]),
    ],
)  # fmt: skip
def test_the_order_of_auto(capability, generations, expected, card):
    card(capability, *generations)
    assert kinds("auto") == expected
    assert kinds("auto", torch.float32) == kinds("auto", torch.float64) == [Chunked]


def test_the_order_of_the_others(card):
    card((9, 0), 2, 3)
    assert kinds("cudnn") == [(Cudnn, TorchFlash, ALWAYS), TorchFlash, Chunked]
    assert kinds("flash") == [TorchFlash, Chunked]
    assert kinds("flash_attn") == [FlashAttn3, FlashAttn2, TorchFlash, Chunked]
    assert kinds("reference") == kinds("reference", torch.float32) == [Reference]
    assert kinds("cudnn", torch.float32) == [Chunked]


def test_what_can_be_used(card):
    card((9, 0))
    assert usable(CARD) == ["auto", "cudnn", "flash", "reference"]
    with pytest.raises(ConfigError) as caught:
        check_backend("flash_attn", CARD)
    assert str(caught.value) == (
        "parallel.attention_backend is flash_attn, but no flash-attn package for this device is installed; "
        "on cuda:0 usable are auto, cudnn, flash, reference"
    )
    card((9, 0), 3)
    assert usable(CARD) == list(ATTENTION_BACKENDS.names())
    card((7, 0), 3)
    assert usable(CARD) == ["auto", "flash", "reference"]
    with pytest.raises(ConfigError, match=r"cuDNN's attention needs a card of compute capability 8\.0 or later"):
        check_backend("cudnn", CARD)
    assert usable(CPU) == ["auto", "flash", "reference"]
    with pytest.raises(ConfigError, match="is cudnn, but .*; on cpu usable are auto, flash, reference"):
        check_backend("cudnn", CPU)
    with pytest.raises(ConfigError, match="'fast' is none of auto, cudnn, flash, flash_attn, reference; on cpu usable"):
        check_backend("fast", CPU)
    for name in usable(CPU):
        check_backend(name, CPU)


def test_the_setting_has_the_backends_and_no_other():
    for name in ATTENTION_BACKENDS.names():
        ParallelConfig(attention_backend=name).validate()
    with pytest.raises(ConfigError, match="attention_backend is 'fast'"):
        ParallelConfig(attention_backend="fast").validate()


def test_a_kernel_is_tested_once(card, monkeypatch, caplog):
    card((9, 0))
    tests = []

    def test(kernel, device, dtype, width, ratio, merges):
        tests.append((type(kernel), width, ratio, merges))
        return "it does not take this" if isinstance(kernel, Mixed) and merges else None

    monkeypatch.setattr(kernel_choice, "probed", test)
    with caplog.at_level(logging.INFO, logger="megatron_v2pe"):
        for _ in range(3):
            assert isinstance(kernel_for(CARD, torch.bfloat16, 128, 2), Mixed)
            assert isinstance(kernel_for(CARD, torch.bfloat16, 128, 2, merges=True), TorchFlash)
            assert isinstance(kernel_for(CARD, torch.float32, 128, 2), Chunked)
    assert tests == [(Mixed, 128, 2, False), (Mixed, 128, 2, True), (TorchFlash, 128, 2, True)]
    assert len([m for m in caplog.messages if "not used" in m]) == 1
    assert len([m for m in caplog.messages if m.startswith("attention on cuda:0, ")]) == 3
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert isinstance(kernel_for(CARD, torch.float16, 128, 2), Chunked)
    assert len(tests) == 3
    with pytest.raises(ConfigError, match="flash_attn, but no flash-attn"):
        kernel_for(CARD, torch.float16, 64, 2, "flash_attn")


def test_candidates_of_the_cpu():
    assert [name for name, _ in candidates(CPU, torch.float32, 64, 2)] == [
        "flash for the CPU",
        "plain, in chunks of queries",
    ]


def played_package(generation, seen):
    """A module with the inner functions of a generation, by plain attention."""

    def borders_to_block(queries, keys, longest_query, longest_key, causal, scale):
        lens = [tuple(borders.diff().tolist()) for borders in (queries, keys)]
        assert (longest_query, longest_key) == (max(lens[0]), max(lens[1]))
        assert queries.dtype == keys.dtype == torch.int32
        return AttentionBlock(*lens, causal, scale)

    def forward(q, k, v, *arguments):
        assert all(tensor.is_contiguous() for tensor in (q, k, v))
        seen.append("forward")
        output, lse = Reference().forward(q, k, v, borders_to_block(*arguments))
        return output, lse.t().contiguous()

    def backward(dout, q, k, v, out, lse, *arguments):
        assert all(tensor.is_contiguous() for tensor in (dout, q, k, v, out, lse)) and lse.shape == q.shape[1::-1]
        seen.append("backward")
        return Reference().backward(dout, q, k, v, out, lse.t(), borders_to_block(*arguments))

    def forward2(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
        block_table=None, leftpad_k=None, seqused_k=None, zero_tensors=False,
    ):  # fmt: skip
        assert not dropout_p
        borders = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        return *forward(q, k, v, *borders, causal, softmax_scale), None, None

    def backward2(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes,
        deterministic, rng_state=None, zero_tensors=False,
    ):  # fmt: skip
        assert (window_size_left, window_size_right, softcap, alibi_slopes, dropout_p) == (-1, -1, 0.0, None, 0.0)
        borders = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        found = backward(dout, q, k, v, out, softmax_lse, *borders, causal, softmax_scale)
        for place, tensor in zip((dq, dk, dv), found, strict=True):
            place.copy_(tensor)

    def forward3(
        q, k, v, k_new=None, v_new=None, qv=None, out_=None, cu_seqlens_q=None, cu_seqlens_k=None,
        cu_seqlens_k_new=None, seqused_q=None, seqused_k=None, max_seqlen_q=None, max_seqlen_k=None, page_table=None,
        kv_batch_idx=None, leftpad_k=None, rotary_cos=None, rotary_sin=None, seqlens_rotary=None, q_descale=None,
        k_descale=None, v_descale=None, softmax_scale=None, causal=False, window_size_left=-1, window_size_right=-1,
        attention_chunk=0, softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, num_splits=1, pack_gqa=None,
        sm_margin=0,
    ):  # fmt: skip
        unused = (k_new, v_new, qv, out_, cu_seqlens_k_new, seqused_q, seqused_k, page_table, kv_batch_idx, leftpad_k,
                  rotary_cos, rotary_sin, seqlens_rotary, q_descale, k_descale, v_descale)  # fmt: skip
        assert all(value is None for value in unused)
        borders = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        return *forward(q, k, v, *borders, causal, softmax_scale), None, None

    def backward3(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q=None, cu_seqlens_k=None, sequed_q=None, sequed_k=None,
        max_seqlen_q=None, max_seqlen_k=None, dq=None, dk=None, dv=None, softmax_scale=None, is_causal=False,
        window_size_left=-1, window_size_right=-1, softcap=0.0, deterministic=False, sm_margin=0,
    ):  # fmt: skip
        assert sequed_q is None and sequed_k is None
        borders = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        found = backward(dout, q, k, v, out, softmax_lse, *borders, is_causal, softmax_scale)
        for place, tensor in zip((dq, dk, dv), found, strict=True):
            place.copy_(tensor)

    def forward4(
        q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None,
        max_seqlen_k=None, page_table=None, softmax_scale=None, causal=False, softcap=None, return_lse=False,
    ):  # fmt: skip
        assert return_lse
        return forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale)

    def backward4(
        q, k, v, out, dout, lse, softmax_scale=None, causal=False, softcap=0.0, cu_seqlens_q=None, cu_seqlens_k=None,
        seqused_q=None, seqused_k=None, max_seqlen_q=None, max_seqlen_k=None,
    ):  # fmt: skip
        borders = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        return backward(dout, q, k, v, out, lse, *borders, causal, softmax_scale)

    names = {
        2: {"_flash_attn_varlen_forward": forward2, "_flash_attn_varlen_backward": backward2},
        3: {"_flash_attn_forward": forward3, "_flash_attn_backward": backward3},
        4: {"_flash_attn_fwd": forward4, "_flash_attn_bwd": backward4},
    }
    return SimpleNamespace(**names[generation])


BLOCKS = [
    AttentionBlock((5, 1, 1, 12), (5, 1, 1, 12), True, SCALE),
    AttentionBlock((3, 1, 40), (6, 2, 80), False, SCALE),
]


def mixed_views(block):
    """Query, key and value as views of one tensor where they can be, and a strided gradient."""
    queries, keys = sum(block.query_lens), sum(block.key_lens)
    query, key, value, outgoing = random_inputs((max(queries, keys),), 4, 2, torch.float32)
    states = torch.cat([query, key, value], dim=1).split([4, 2, 2], dim=1)
    later = torch.cat([outgoing, outgoing], dim=2)[..., :WIDTH]
    return [states[0][:queries], states[1][:keys], states[2][:keys], later[:queries]]


def is_the_reference(kernel, block):
    *states, outgoing = inputs = mixed_views(block)
    output, lse = kernel.forward(*states, block)
    ours = [output, lse, *kernel.backward(outgoing, *states, output, lse, block)]
    for a, b in zip(ours, dense_results(inputs, block), strict=True):
        assert a.shape == b.shape and (a.double() - b).abs().max() < 1e-5


@pytest.mark.parametrize("block", BLOCKS, ids=["causal", "rectangles"])
@pytest.mark.parametrize(("generation", "kernel"), [(2, FlashAttn2()), (3, FlashAttn3()), (4, FlashAttn4())])
def test_the_packages_are_asked_in_their_words(generation, kernel, block, monkeypatch):
    """Signatures of flash-attn 2.7, 3 and 4 as their sources have them."""
    seen = []
    module = played_package(generation, seen)
    monkeypatch.setattr(flash, "package", lambda number: module if number == generation else None)
    is_the_reference(kernel, block)
    assert seen == ["forward", "backward"]


@pytest.mark.parametrize("block", BLOCKS, ids=["causal", "rectangles"])
def test_pytorchs_flash_operator_is_asked_in_its_words(block, monkeypatch):
    module = played_package(2, [])

    def forward(q, k, v, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None):
        assert not return_debug_mask
        return module._flash_attn_varlen_forward(q, k, v, cum_q, cum_k, max_q, max_k, dropout_p, scale, is_causal)

    def backward(
        grad_out, q, k, v, out, lse, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, rng_state, unused, *, scale=None
    ):
        assert rng_state.dtype == torch.uint64 and unused.numel() == 0
        found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        borders = cum_q, cum_k, max_q, max_k
        settings = dropout_p, scale, is_causal, -1, -1, 0.0, None, False
        module._flash_attn_varlen_backward(grad_out, q, k, v, out, lse, *found, *borders, *settings)
        return found

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", backward)
    is_the_reference(TorchFlash(), block)


@pytest.mark.skipif(flash.package(2) is not None, reason="flash-attn is installed")
def test_a_package_that_is_not_there():
    assert flash.installed(9) == [] or flash.package(3) is not None
    with pytest.raises(AssertionError, match="flash-attn 2 is not installed"):
        FlashAttn2().forward(*random_inputs((4,), 2, 2, torch.float32)[:3], AttentionBlock((4,), (4,), True, SCALE))
