"""Every language model with its scaling against a plain dense formula, at whole positions and at V2PE's fractions.

Both sides compute in float64, so that what is left is the float32 rounding of our cosines and sines. The formula is
`helpers/dense_decoder.py`. Of three documents in a pack, one stays below the length from which scalings by length set
in, by its positions, though it has more tokens.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from helpers import dense_decoder, parity
from helpers.family_cases import FAMILIES, TOWER_300M
from helpers.family_parity import by_published_names, full_state
from megatron_v2pe.checkpoint.hf.random_weights import random_weights
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy

LOGITS = 5e-6  # absolute; measured 1.3e-6 on logits up to 17
LOSS = 1e-7  # absolute; measured 1.5e-8
GRADIENT = 2e-6  # relative to the largest entry of each tensor; measured 3.0e-7
NAMES = [name for name in FAMILIES if not name.startswith("internlm2")]  # whose numbers are golden
SEQLENS = (9, 31, 60)
FRACTIONS = StridePolicy("v2pe_fix", 1)
POLICIES = {"whole": StridePolicy("default"), "fractions": FRACTIONS}


def config_of(name):
    """The family with a small tower, which has nothing to do here."""
    return replace(FAMILIES[name], tower=TOWER_300M).config()


def positions_of(kind):
    """Positions of three documents: 0, 1, 2, ..., or steps of a quarter, a half or one that reach 14, 7 and 60."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for length in SEQLENS:
        steps = torch.tensor([4, 2, 1])[torch.randint(3, (length,), generator=generator)]
        if length == 31:
            steps[:] = 1
        steps = steps if kind == "fractions" else torch.full((length,), 4)
        found.append((steps.cumsum(0) - steps[0]) / 4)
    return [part.double() for part in found]


def drawn(config):
    """Weights of every tensor, in which norms differ from 1 and biases from 0."""
    generator = torch.Generator().manual_seed(7)
    weights = random_weights(config, 5, {"lm_head.weight": 0.3})
    noise = {name: 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    return {name: (tensor + noise[name] * (tensor.dim() == 1)).double() for name, tensor in weights.items()}


def dense(config, weights, ids, labels, positions, kind):
    """Loss, logits and gradients by the formula, every document alone."""
    own = {name: tensor.clone().requires_grad_() for name, tensor in weights.items() if name.startswith("language_")}
    documents = zip(ids.split(SEQLENS), positions, strict=True)
    logits = torch.cat([
        dense_decoder.logits(config["llm_config"], own, document, places, scaled=kind == "whole")
        for document, places in documents
    ])  # fmt: skip
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    return loss.item(), logits.detach(), {name: tensor.grad for name, tensor in own.items()}


def ours(pools, config, weights, ids, labels, positions, kind):
    """Loss, logits and gradients of our model, the documents in one pack."""
    policy = POLICIES[kind]
    denominator = policy.denominator(4)
    ticks = Ticks((torch.cat(positions) * denominator).long(), denominator)
    pack = parity.Pack(ids, ticks, SEQLENS, labels, torch.ones(len(ids)).double(), torch.zeros(0, 3, 56, 56))
    case = parity.Case(
        hf_config=config,
        layout=ParallelConfig(use_distributed_optimizer=False),
        packs=[pack],
        weights=full_state(config, weights),
        image_token_id=-1,
        policy=policy,
        dtype=torch.float64,
    )
    result = pools[1].run(parity.run, case=case)[0]
    return result.loss, result.logits[0], by_published_names(config, result.gradients)


def compared(pools, name, kind, changes=None):
    """Errors of loss, logits and gradients; `changes` are made in the section that ours alone reads."""
    config = config_of(name)
    generator = torch.Generator().manual_seed(1)
    ids, labels = torch.randint(config["llm_config"]["vocab_size"], (2, sum(SEQLENS)), generator=generator)
    weights, positions = drawn(config), positions_of(kind)
    expected = dense(config, weights, ids, labels, positions, kind)
    changed = {**config, "llm_config": {**config["llm_config"], **(changes or {})}}
    found = ours(pools, changed, weights, ids, labels, positions, kind)
    gradients = max(
        ((found[2][tensor] - gradient).abs().max() / gradient.abs().max()).item()
        for tensor, gradient in expected[2].items()
    )
    return abs(found[0] - expected[0]), (found[1] - expected[1]).abs().max().item(), gradients


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("name", NAMES)
def test_loss_logits_and_gradients(name, kind, pools):
    loss, logits, gradients = compared(pools, name, kind)
    assert loss < LOSS and logits < LOGITS and gradients < GRADIENT, (loss, logits, gradients)


LONGROPE = FAMILIES["phi3"].llm["rope_scaling"]


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("internlm3", "whole", {"max_position_embeddings": 4096}),  # no document is beyond
        ("internlm3", "fractions", {"rope_scaling": {"type": "linear", "factor": 6.0}}),
        ("llama 3", "fractions", {"rope_scaling": None}),
        ("yi", "fractions", {"rope_scaling": None}),
        ("qwen3 tied", "fractions", {"rope_scaling": None}),
        ("phi3", "fractions", {"rope_scaling": {**LONGROPE, "long_factor": LONGROPE["short_factor"]}}),
        ("phi3", "fractions", {"rope_scaling": {**LONGROPE, "attention_factor": 1.0}}),
        ("phi3", "fractions", {"original_max_position_embeddings": 17}),  # another attention factor
    ],
)
def test_another_scaling_is_seen(name, kind, changes, pools):
    """The mildest, another attention factor, gives 0.29; no scaling where there is one 1.8 and more."""
    assert compared(pools, name, kind, changes)[1] > 1000 * LOGITS
