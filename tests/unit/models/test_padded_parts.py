"""Parts of tensors with padding: how many entries ranks hold, what a checkpoint gets, what one of other rows gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import nn

from megatron_v2pe.checkpoint import sharded
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.models import padding
from megatron_v2pe.models.build import model_sizes
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.config_sections import padded, share
from megatron_v2pe.models.presets import preset_config
from megatron_v2pe.parallel.config import ParallelConfig


def group(rank, size):
    """A process group's two numbers."""
    return SimpleNamespace(rank=lambda: rank, size=lambda: size)


def parts_of(whole, axis, size, ranks):
    """A tensor that is padded and divided among ranks, as their parameters."""
    made = []
    for rank, part in enumerate(whole.chunk(ranks, axis)):
        parameter = nn.Parameter(part.clone())
        padding.mark(parameter, axis, size, group(rank, ranks))
        made.append(parameter)
    return made


@pytest.mark.parametrize(
    ("degree", "heads"), [(1, 25), (2, 26), (3, 27), (4, 28), (5, 25), (8, 32), (25, 25), (16, 32)], ids=str
)
def test_heads_of_the_6b_tower(degree, heads):
    assert padded(25, degree) == heads
    assert share(25, degree) * degree == heads


@pytest.mark.parametrize("name", ["InternVL2_5-26B", "InternVL2_5-38B", "InternVL3-78B", "InternVL3_5-38B"])
def test_published_models_with_the_6b_tower_fit_tensor_parallel_sizes_of_their_decoder(name):
    model = InternVLConfig.from_hf(preset_config(name))
    assert (model.vision.num_attention_heads, model.vision.hidden_size, model.vision.num_layers) == (25, 3200, 45)
    for degree in (2, 4, 8):
        ParallelConfig(tensor_model_parallel_size=degree).validate(degree, model_sizes(model))
    with pytest.raises(ConfigError, match="tensor_model_parallel_size 3 does not divide"):
        ParallelConfig(tensor_model_parallel_size=3).validate(3, model_sizes(model))


@pytest.mark.parametrize(
    ("rows", "degree", "expected"), [(509, 1, 512), (509, 2, 512), (509, 3, 768), (92553, 5, 92800)]
)
def test_rows_of_a_vocabulary_are_a_multiple_of_128_and_of_the_ranks(rows, degree, expected):
    llm = replace(InternVLConfig.from_hf(preset_config("InternVL2-2B")).llm, vocab_size=rows)
    assert llm.vocabulary_rows(degree) == expected and expected % 128 == expected % degree == 0


@pytest.mark.parametrize(("axis", "ranks"), [(0, 2), (0, 4), (1, 3)], ids=str)
def test_checkpoint_parts_make_up_the_tensor_without_padding(axis, ranks):
    size = 5
    shape = [3, 3]
    shape[axis] = padded(size, ranks)
    whole = torch.arange(1.0, 1 + shape[0] * shape[1]).view(shape)
    collected = torch.zeros([size if place == axis else 3 for place in (0, 1)])
    for rank, parameter in enumerate(parts_of(whole, axis, size, ranks)):
        entry = ShardedTensor.from_rank_offsets("key", parameter, (axis, rank, ranks))
        factory = padding.without_padding({"name": entry})["name"]
        (part,) = factory.build()
        assert part.global_shape == tuple(collected.shape)
        place = tuple(slice(o, o + n) for o, n in zip(part.global_offset, part.local_shape, strict=True))
        collected[place] = part.data.detach()
        back = factory.merge_fn([part.filled()])
        found = padding.of_parameter(parameter)
        assert back.shape == parameter.shape and not found.of(back).any()
        assert torch.equal(found.cut(back), found.cut(parameter.detach()))
    assert torch.equal(collected, whole.narrow(axis, 0, size))


def test_a_size_that_divides_has_no_padding():
    for parameter in parts_of(torch.ones(6, 2), 0, 6, 3):
        assert padding.of_parameter(parameter) is None
        entry = ShardedTensor.from_rank_offsets("key", parameter)
        assert padding.without_padding({"name": entry, "other": 3}) == {"name": entry, "other": 3}


def test_padding_is_cleared_and_looked_at():
    model = nn.Linear(3, 3)
    padding.mark(model.weight, 0, 2, group(0, 1))
    padding.mark(None, 0, 2, group(0, 1))
    with pytest.raises(CheckpointError, match="weight: 3 of 3 values of its padding are not zero"):
        padding.check(model)
    before = model.weight.detach().clone()
    padding.clear(model)
    padding.check(model)
    assert torch.equal(model.weight[:2], before[:2]) and not model.weight[2].any()


class Reader:
    """A checkpoint of one tensor."""

    def __init__(self, tensor):
        self.tensor, self.tensors = tensor, {"key": SimpleNamespace(size=tuple(tensor.shape))}

    def read(self, key, begin, sizes, target):
        """Copy a part."""
        target.copy_(self.tensor[tuple(slice(b, b + n) for b, n in zip(begin, sizes, strict=True))])

    def read_rows(self, key, first, rows):
        """Return some rows."""
        return self.tensor[first : first + rows]


def vocabulary(rows, of):
    """What the last of two ranks asks a checkpoint for, of a vocabulary of 5 tokens and 6 rows in memory."""
    parameter = nn.Parameter(torch.full((3, 2), float("nan")))
    padding.mark(parameter, 0, of, group(1, 2))
    entry = ShardedTensor.from_rank_offsets("key", parameter, (0, 1, 2), allow_shape_mismatch=True)
    (part,) = padding.without_padding({"name": entry})["name"].build()
    stored = torch.arange(1.0, 1 + 2 * rows).view(rows, 2)
    return part, stored


@pytest.mark.parametrize("rows", [5, 8])
def test_a_vocabulary_with_more_rows_in_the_checkpoint(rows):
    """Those of earlier versions are padded; what is beyond the vocabulary has to be zero."""
    part, stored = vocabulary(rows, of=5)
    stored[5:] = 0
    values = sharded._filled(part, Reader(stored), Path("folder"))
    assert torch.equal(values, torch.tensor([[7.0, 8.0], [9.0, 10.0], [0.0, 0.0]]))
    if rows == 8:
        stored[7, 1] = 1.0
        with pytest.raises(CheckpointError, match="key has 8 rows, the model's vocabulary 5, and 1 values of the rows"):
            sharded._filled(part, Reader(stored), Path("folder"))


def test_a_vocabulary_with_fewer_rows_in_the_checkpoint():
    part, stored = vocabulary(4, of=5)
    with pytest.raises(CheckpointError, match=r"key has shape \[4, 2\], the model's is \[5, 2\]"):
        sharded._filled(part, Reader(stored), Path("folder"))
