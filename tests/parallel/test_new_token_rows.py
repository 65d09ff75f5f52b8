"""Rows of new tokens and adapters under every layout: the same first values to the bit, padding zero, learning alone,
going on from a checkpoint that holds these rows of the tables and the adapters alone.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import parity
from helpers.packs import random_packs
from megatron_v2pe.checkpoint.growth import TABLES, Growth
from megatron_v2pe.checkpoint.hf.adapter_rows import chosen, linears_of
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.foreign.grown_tokenizer import NewToken
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.lora_plan import LowRank, LowRankPlan
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder

POLICY = StridePolicy("v2pe_fix", 1)
BEFORE, ROWS = 506, 509
TOKENS = (NewToken("<a>", 506, (3, 400)), NewToken("<b>", 507, (505,)), NewToken("<c>", 508, (255, 256, 257, 30)))
"""Pieces lie on both of two ranks, the first of which holds rows 0 to 255."""
NEW = range(BEFORE, ROWS)
TP2 = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
DP2 = ParallelConfig(overlap_grad_reduce=True, overlap_param_gather=True)
CP2 = ParallelConfig(context_parallel_size=2)
PLAIN = replace(DP2, use_distributed_optimizer=False, overlap_param_gather=False)
LORA = LowRank(2, 4.0)
SETTINGS = AdamWConfig(lr=1e-2, warmup_ratio=0.0, weight_decay=0.3)
WEIGHTS = 2e-6  # largest difference to one process after 3 steps at 1e-2; measured 6.2e-8 of rows
FACTORS = 1e-4  # the same of factors of adapters, whose first gradients are 0 and then 1e-6; measured 1.0e-5


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def case(request, golden, tmp_path_factory):
    """A checkpoint of 506 rows, and packs that hold tokens beyond them."""
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    config["llm_config"] |= {"vocab_size": BEFORE, "tie_word_embeddings": request.param}
    folder = tmp_path_factory.mktemp("base")
    write_hf_folder(folder / "hf", config, dtype=torch.float32, shards=1)
    hf_to_mcore(folder / "hf", folder / "mcore")
    packs = [replace(pack, input_ids=_new(pack.input_ids), labels=_new(pack.labels)) for pack in
             random_packs(config, POLICY, "mixed")]  # fmt: skip
    config["llm_config"]["vocab_size"] = ROWS
    grown = parity.Case(config, ParallelConfig(), packs, {}, image_token_id=505, policy=POLICY)
    return folder, grown


def _new(ids: torch.Tensor) -> torch.Tensor:
    """Put a new token in place of every seventh number of text, or label."""
    return torch.where((ids > 2) & (ids < 500) & (ids % 7 == 0), BEFORE + ids % 3, ids)


def equal_in(case, pools, single, layouts):
    """Compare layouts with one process, and what each has stored and loaded with what it had."""
    folder, one = case
    names = TABLES[: 1 if one.hf_config["llm_config"]["tie_word_embeddings"] else 2]
    arguments = {"folder": str(folder / "mcore"), "root": str(folder)}
    for name, layout in layouts.items():
        ranks = pools[2].run(train, case=replace(one, layout=layout), name=name, **arguments)
        found = ranks[0]
        assert all(rank["padding"] == 0 for rank in ranks) and (name != "tp2" or ranks[1]["padded"] > 0)
        for key in found["first"]:
            assert torch.equal(found["first"][key], single["first"][key]), (name, key)
            most = FACTORS if ".adapter." in key else WEIGHTS
            assert (found["last"][key] - single["last"][key]).abs().max() < most, (name, key)
            assert torch.equal(found["resumed"][key], found["last"][key]), (name, key)
        for key in names:
            assert torch.equal(found["last"][key][:BEFORE], single["first"][key][:BEFORE]), (name, key)
        assert {key: shape for key, shape in found["stored"].items() if key.endswith(names)} and not [
            key for key, shape in found["stored"].items() if ".adapter." not in key and shape != (3, shape[-1])
        ], (name, found["stored"])


@pytest.mark.exhaustive
def test_further_layouts(case, pools):
    folder, one = case
    single = pools[1].run(train, case=one, name="alone", folder=str(folder / "mcore"), root=str(folder))[0]
    equal_in(case, pools, single, {"cp2": CP2, "plain": PLAIN})


def test_layouts(case, pools):
    folder, one = case
    tied = one.hf_config["llm_config"]["tie_word_embeddings"]
    arguments = {"folder": str(folder / "mcore"), "root": str(folder)}
    single = pools[1].run(train, case=one, name="single", **arguments)[0]
    names = TABLES[: 1 if tied else 2]
    for name in names:
        first, last = single["first"][name], single["last"][name]
        means = torch.stack([first[list(token.pieces)].mean(0) for token in TOKENS])
        assert first.shape == (ROWS, first.shape[1]) and torch.equal(first[BEFORE:], means)
        assert (
            torch.equal(first[:BEFORE], last[:BEFORE]) and ((first[BEFORE:] - last[BEFORE:]).abs() > 1e-3).any(1).all()
        )
    equal_in(case, pools, single, {"tp2": TP2, "pp2": PP2, "dp2": DP2})
    broken = pools[2].run(train, case=replace(one, layout=TP2), name="broken", forget=True, **arguments)[0]
    assert (broken["last"][names[0]][:BEFORE] - single["last"][names[0]][:BEFORE]).abs().max() > 100 * WEIGHTS


def train(case: parity.Case, folder: str, root: str, name: str, forget: bool = False) -> dict[str, Any]:
    """Load, train three steps, and the last of them again from a checkpoint; runs in worker processes.

    Args:
        case: the grown model, and its packs.
        folder: the checkpoint without the new tokens.
        root: where the checkpoint of step 2 goes.
        name: of the layout.
        forget: leave the gradients of other rows as they are.
    """
    from megatron_v2pe.checkpoint import store
    from megatron_v2pe.checkpoint.vet import vet_checkpoint
    from megatron_v2pe.models.lora import put_adapters
    from megatron_v2pe.models.padding import paddings
    from megatron_v2pe.workshop.full_state import gather_full

    if forget:
        from unittest import mock

        with mock.patch("megatron_v2pe.train.ddp.clear_other_rows"):
            return train(case, folder, root, name)
    found: dict[str, Any] = {"padding": 0.0, "padded": 0}
    save = Path(root) / name
    for resumes in (False, True):
        options = ModelOptions(params_dtype=case.dtype)
        adapt = partial(put_adapters, _plan(case.hf_config))
        with built(case.hf_config, case.layout, options, case.policy, case.image_token_id, adapt) as model:
            store.load_model(Path(folder), model, growth=Growth(TOKENS, BEFORE))
            if not resumes:
                found["first"] = gather_full(model, lambda parameter: parameter.detach().clone())
            steps = _steps(case, model, save, resumes, Path(folder))
            found["resumed" if resumes else "last"] = gather_full(steps, lambda parameter: parameter.detach().clone())
            for _, parameter, padding in paddings(model):
                part = padding.of(parameter.detach())
                found["padded"] += part.numel()
                found["padding"] = max(found["padding"], part.abs().max().item() if part.numel() else 0.0)
    stored = vet_checkpoint(save / "iter_0000002", files=False).tensors
    found["stored"] = {key: entry.size for key, entry in stored.items()}
    return found


def _plan(config: dict[str, Any]) -> LowRankPlan:
    """Return adapters on the language model's attention."""
    linears = chosen(linears_of(InternVLConfig.from_hf(config), "original"), ("language_model.attention",))
    pieces = {name: tuple(row.piece for row in rows) for name, rows in linears.items()}
    return LowRankPlan(pieces, {"language_model": LORA})


def _steps(case: parity.Case, model, save: Path, resumes: bool, source: Path):
    """Do steps 1 to 3 and save after 2, or go on from there."""
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_v2pe.checkpoint import store
    from megatron_v2pe.train.ddp import freeze, gather_parameters, wrap
    from megatron_v2pe.train.new_rows import learn_new_rows
    from megatron_v2pe.train.optimizer_step import build_optimizer, build_scheduler, take_step
    from megatron_v2pe.train.step import forward_backward

    freeze(model, backbone=True, llm=True, projector=True)
    learn_new_rows(model, TOKENS[0].id, TOKENS[-1].id + 1)
    groups, layout = ProcessGroupCollection.use_mpu_process_groups(), case.layout
    wrapped = wrap(model, layout, groups, torch.device("cpu"))
    optimizer = build_optimizer(
        wrapped, SETTINGS, case.dtype, layout.use_distributed_optimizer, layout.overlap_param_gather, groups
    )
    scheduler = build_scheduler(optimizer, SETTINGS, 10)
    first = 0
    if resumes:
        first = store.load_training(
            save / "iter_0000002", model, optimizer, learned_only=True, table_rows=NEW
        ).iteration
        scheduler.step(increment=first)
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    denominator = sum(pack.weights.sum().item() for pack in case.packs)
    wrapped.train()
    for step in range(first, 3):
        mine = [parity.micro_batch(case, index, model) for index in range(rank, len(case.packs), size)]
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        forward_backward(wrapped, mine, len(mine), denominator)
        take_step(optimizer)
        scheduler.step(increment=1)
        if step == 1:
            gather_parameters(wrapped)
            state = store.TrainingState(2, {}, {})
            store.save(save, model, optimizer, state, source, learned_only=True, table_rows=NEW)
    gather_parameters(wrapped)
    return model
