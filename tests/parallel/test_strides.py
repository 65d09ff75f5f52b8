"""A model asked at one stride after another answers as if it had been opened anew for each."""

from __future__ import annotations

import pytest
import torch

from helpers.evaluation import at_strides
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.generate.pretrained import ChatQuestion
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import parse_stride
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy
from megatron_v2pe.workshop.worker_pool import WorkerError

STRIDES = [parse_stride(text) for text in ("4", "1/3", "1", "3/2", "4")]
"""Positions of a tile of 4 tokens: whole, fractions with other denominators, and the first again."""
LAYOUTS = {
    "one": (1, ParallelConfig()),
    "tp2": (2, ParallelConfig(tensor_model_parallel_size=2)),
    "pp2": (2, ParallelConfig(pipeline_model_parallel_size=2)),
    "cp2": (2, ParallelConfig(context_parallel_size=2)),
}


def converted(golden, folder, **changes):
    hf_to_mcore(write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf", **changes), folder / "megatron")
    return folder / "megatron"


@pytest.fixture(scope="module")
def checkpoint(golden, tmp_path_factory):
    return converted(golden, tmp_path_factory.mktemp("strides"), rope_pos_id_version="v2pe_rnd")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    root = tmp_path_factory.mktemp("strides_data")
    write_benchmark(root, "chartqa_human")
    images = sorted(map(str, root.rglob("*.png")))
    return [
        ChatQuestion([("human", "<image>\nWhich colour?")], images[:1], "one image"),
        ChatQuestion([("human", "<image>\nand <image>\nwhich is larger, and why?")], images[1:3], "two images"),
    ]


@pytest.fixture(scope="module")
def fresh(checkpoint, questions, pools):
    return pools[1].run(
        at_strides, checkpoint=checkpoint, questions=questions, strides=STRIDES, layout=ParallelConfig(), reopen=True
    )[0]


def largest_difference(expected, found):
    pairs = [pair for a, b in zip(expected, found, strict=True) for pair in zip(a.logits, b.logits, strict=True)]
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_answers_are_those_of_a_checkpoint_opened_at_the_stride(checkpoint, questions, fresh, pools, name):
    processes, layout = LAYOUTS[name]
    settings = {"checkpoint": checkpoint, "questions": questions, "strides": STRIDES, "layout": layout}
    seen = pools[processes].run(at_strides, **settings)
    for rank in seen:
        assert [one.ids for one in rank] == [one.ids for one in fresh]
    assert largest_difference(fresh, seen[-1]) < 1e-13  # measured: TP2 2.0e-15, CP2 2.5e-15, others 0
    if name in ("one", "pp2"):
        with pytest.raises(WorkerError, match="positions are counted in ticks of 1/12, expected ticks of 1/4"):
            pools[processes].run(at_strides, **settings, forget_rotary=True)


def test_strides_make_a_difference(fresh):
    """Otherwise the comparison above would show nothing."""
    apart = [largest_difference([a], [b]) for a, b in zip(fresh, fresh[1:], strict=False)]
    assert min(apart) > 1e-4, apart
    assert all(torch.equal(a, b) for a, b in zip(fresh[0].logits, fresh[-1].logits, strict=True))


def test_a_checkpoint_without_v2pe_is_refused_at_a_stride(golden, questions, pools, tmp_path):
    plain = converted(golden, tmp_path, rope_pos_id_version="default")
    with pytest.raises((ConfigError, WorkerError), match="trained with rope_pos_id_version default"):
        pools[1].run(
            at_strides, checkpoint=plain, questions=questions, strides=[4], layout=ParallelConfig(), reopen=True
        )
