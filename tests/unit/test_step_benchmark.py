"""The step beside transformers': both learn the same document, in models of the same shape."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import StepCost
from megatron_v2pe.parallel.rank_coordinates import RankCoordinates

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from perf import step_beside_transformers

    return step_beside_transformers


def small(benchmark, **changes):
    from perf._training import Shape

    shape = Shape(layers=2, heads=2, groups=1, vocab=300)
    return benchmark.Task(**{"shape": shape, "tokens": 640, "tiles": 2, "supervised": 20, **changes})


def test_both_learn_the_same_document(benchmark):
    from perf._training import micro_batch

    task = small(benchmark)
    model = SimpleNamespace(
        internvl=InternVLConfig.from_hf(task.shape.hf_config()),
        coordinates=RankCoordinates(),
        image_token_id=task.image_token,
    )
    mine = micro_batch(task.step, model)
    ids, labels, pixels = benchmark.peer_batch(task)
    assert torch.equal(mine.input_ids, ids[0]) and (ids == task.image_token).sum() == 2 * 256
    learned = labels[0, 1:] != -100  # in place there, shifted here
    assert mine.targets is not None and torch.equal(mine.targets.rows, learned.nonzero().squeeze(1))
    assert torch.equal(mine.targets.tokens, labels[0, 1:][learned]) and learned.sum() == 20
    assert mine.pixel_values is not None and mine.pixel_values.shape == pixels.shape


def test_both_have_the_same_matrices(benchmark):
    """Parameters of theirs, without norms, biases and what is looked up: what our formula multiplies by tokens."""
    task = small(benchmark)
    peer = benchmark.peer_model(task)
    cost = StepCost.of(InternVLConfig.from_hf(task.shape.hf_config()))
    decoder = sum(p.numel() for p in peer.model.language_model.layers.parameters() if p.dim() == 2)
    assert cost.per_token == 6 * decoder
    assert cost.per_supervised == 6 * peer.lm_head.weight.numel()
    tower = sum(p.numel() for p in peer.model.vision_tower.encoder.parameters() if p.dim() == 2)
    patches = peer.model.vision_tower.embeddings.patch_embeddings.projection.weight.numel()
    projector = sum(p.numel() for p in peer.model.multi_modal_projector.parameters() if p.dim() == 2)
    attention = 3 * 4 * 1025**2 * 64 * 2
    assert cost.per_tile == 6 * 1025 * tower + attention + 6 * 256 * projector + 4 * 1024 * patches


def test_the_published_sizes(benchmark):
    task = small(benchmark, shape=benchmark.Published(), tokens=33_400, tiles=130)
    cost = StepCost.of(InternVLConfig.from_hf(task.shape.hf_config()))
    assert task.image_token == 92_552 and cost.per_token == pytest.approx(6 * 1.51e9, rel=1e-3)
