"""The layer spec's attention: what it refuses, that it rotates by the pack's angles, and results kept for recompute."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from helpers.attention import SCALE, WIDTH, CountingKernel, dense, random_inputs
from megatron_v2pe.errors import ConfigError, LayoutError
from megatron_v2pe.families.internvit.tower import tower_config
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.language_model import decoder_config
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.attention import core as core_attention
from megatron_v2pe.parallel.attention import ring as ring_attention
from megatron_v2pe.parallel.attention.block import AttentionBlock, CpuFlash
from megatron_v2pe.parallel.attention.core import FlashCoreAttention, refuse_inexact, rotated
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.parallel.packed_sequence import PackedSequence
from megatron_v2pe.parallel.zigzag import ZigzagLayout
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

HEADS, GROUPS, LENGTHS = 4, 2, (5, 1, 7)


def configuration(**changes):
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * WIDTH,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        attention_dropout=0.0,
    )
    for name, value in changes.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    return config


def attention(config=None, mask=AttnMaskType.causal, **settings):
    return FlashCoreAttention(config or configuration(), 3, mask, "self", **settings)


def angles():
    return (torch.arange(sum(LENGTHS))[:, None] * 0.25 ** torch.arange(WIDTH // 2) * 1.3).float()


def pack_of(lengths, rows):
    whole = angles()[:rows]
    pack = PackedSequence.build(ZigzagLayout(LENGTHS), angles().cos(), angles().sin())
    pack.layout, pack.rotary_cos, pack.rotary_sin = ZigzagLayout(lengths), whole.cos(), whole.sin()
    return pack


def states():
    return random_inputs((sum(LENGTHS),), HEADS, GROUPS, torch.float64)[:3]


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ({"attention_dropout": 0.1}, {}),
        ({}, {"attention_dropout": 0.1}),
        ({"attention_dropout": 0.1}, {"cp_comm_type": "a2a"}),
    ],
)
def test_attention_dropout_is_refused(config, settings):
    with pytest.raises(ConfigError, match=r"attention dropout 0\.1 is not supported; InternVL trains with 0"):
        attention(configuration(**config), **settings)


def test_dropout_of_the_layer_goes_before_that_of_the_configuration():
    attention(configuration(attention_dropout=0.1), attention_dropout=0.0)


def test_fused_rotary_embedding_is_refused():
    config = configuration(apply_rope_fusion=True)
    with pytest.raises(ConfigError, match="apply_rope_fusion counts positions from 0 in every document"):
        attention(config)
    with pytest.raises(ConfigError, match="apply_rope_fusion"):
        refuse_inexact(config, 0.0)


@pytest.mark.parametrize("name", ["all_gather", "a2a+p2p", "P2P"])
def test_an_unknown_cp_comm_type_is_refused(name):
    with pytest.raises(ConfigError) as caught:
        attention(cp_comm_type=name)
    assert str(caught.value) == f"cp_comm_type {name!r} is none of p2p, a2a"


@pytest.mark.parametrize(("name", "used"), [(None, "p2p"), ("p2p", "p2p"), ("a2a", "a2a")])
def test_known_cp_comm_types(name, used):
    assert attention(cp_comm_type=name).cp_comm_type == used


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [((5, 1, 6), 13), ((5, 1, 8), 13), (LENGTHS, 12), (LENGTHS, 1), ((5, 1, 6), 12)],
)
def test_documents_and_angles_must_cover_the_tokens(lengths, rows):
    query, key, value = states()
    message = f"over 13 tokens, but the pack's documents cover {sum(lengths)} and its positions {rows}$"
    with pytest.raises(LayoutError, match=message):
        rotated(query, key, pack_of(lengths, rows))
    with pytest.raises(LayoutError, match=message):
        attention()(query, key, value, None, packed_seq_params=pack_of(lengths, rows))


def test_a_pack_needs_an_angle_for_every_token_when_it_is_built():
    with pytest.raises(AssertionError, match="12 angles, 13 tokens"):
        PackedSequence.build(ZigzagLayout(LENGTHS), angles()[:12].cos(), angles()[:12].sin())


def turned(tensor):
    """The same rotation by complex numbers: first half of a head real parts, second imaginary."""
    first, second = tensor.double().chunk(2, dim=-1)
    found = torch.complex(first, second) * torch.polar(torch.ones(()).double(), angles().double()).unsqueeze(1)
    return torch.cat([found.real, found.imag], dim=-1)


def test_a_pack_is_rotated_by_its_angles_and_attended_document_by_document():
    query, key, value = states()
    block = AttentionBlock(LENGTHS, LENGTHS, causal=True, scale=SCALE)
    output = attention()(query, key, value, None, packed_seq_params=pack_of(LENGTHS, 13))
    expected = dense(turned(query), turned(key), value, block)[0].flatten(1)
    assert (output - expected).abs().max() < 1e-6  # measured 7.4e-8: cosines are float32
    unturned = dense(query, key, value, block)[0].flatten(1)
    assert (output - unturned).abs().max() > 0.1


@pytest.mark.parametrize("keep", [True, False])
def test_a_recomputed_layer_takes_the_result_of_its_forward_pass(keep, monkeypatch):
    kernel = CountingKernel(CpuFlash())
    monkeypatch.setattr(ring_attention, "choose_kernel", lambda *_, **__: kernel)
    layer, pack = attention(keep_result=keep), pack_of(LENGTHS, 13)
    leaves = [state.requires_grad_() for state in states()]
    plain = layer(*leaves, None, packed_seq_params=pack)
    expected = torch.autograd.grad(plain.square().sum(), leaves)
    assert kernel.forwards == 1 and not pack.kept
    with torch.no_grad():
        first = layer(*leaves, None, packed_seq_params=pack)
    assert kernel.forwards == 2 and list(pack.kept) == [3] * keep
    again = layer(*leaves, None, packed_seq_params=pack)
    gradients = torch.autograd.grad(again.square().sum(), leaves)
    assert kernel.forwards == 3 - keep and not pack.kept
    assert torch.equal(plain, first) and torch.equal(plain, again)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_setting_reaches_the_choice_of_a_kernel(backend, monkeypatch):
    config = configuration()
    config.attention_kernels = backend
    asked = []

    def choose(query, groups, backend, merges):
        asked.append((groups, backend, merges))
        return CpuFlash()

    monkeypatch.setattr(ring_attention, "choose_kernel", choose)
    attention(config)(*states(), None, packed_seq_params=pack_of(LENGTHS, 13))
    assert asked == [(GROUPS, backend, False)]
    monkeypatch.setattr(core_attention, "batched_attention", lambda *arguments: asked.append(arguments) or arguments[0])
    tiles = [state.unsqueeze(1) for state in states()]
    attention(config, AttnMaskType.no_mask)(*tiles, None)
    assert asked[-1][-1] == backend


def test_the_models_configurations_carry_the_setting():
    model = InternVLConfig.from_hf(internvl2_2b_config())
    for make in (decoder_config, tower_config):
        for backend in ("auto", "flash"):
            config = make(model, ParallelConfig(attention_backend=backend), ModelOptions())
            assert config.attention_kernels == backend


def test_nothing_is_kept_outside_training():
    layer, pack = attention(keep_result=True).eval(), pack_of(LENGTHS, 13)
    with torch.no_grad():
        layer(*states(), None, packed_seq_params=pack)
    assert not pack.kept
