"""What is recomputed on which card, what is refused or foreseen, and what is said when memory runs out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_v2pe.base import exit_status
from megatron_v2pe.errors import ConfigError, MemoryShortageError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.memory import GIB, RESERVE
from megatron_v2pe.models.recompute import RecomputePlan
from megatron_v2pe.recipes.internvl2_2b import internvl2_2b_v2pe_32k, internvl2_2b_v2pe_256k
from megatron_v2pe.train import memory
from megatron_v2pe.train.memory import MemoryBudget, in_words, plan_of_stage, shortage_explained, shortage_foreseen
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

MODEL = InternVLConfig.from_hf(internvl2_2b_config())
H100 = int(79.1 * GIB)


def budget(config=None, world=1, card: int | None = H100, **train):
    config = config or internvl2_2b_v2pe_32k()
    return MemoryBudget(replace(config, train=replace(config.train, **train)), MODEL, world, card)


def document_of_130k():
    config = internvl2_2b_v2pe_32k()
    data = replace(config.data, max_packed_tokens=130_000, max_seq_length=130_000, num_images_expected=507)
    return replace(config, data=data, train=replace(config.train, global_batch_size=1))


@pytest.mark.parametrize("share", [0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("config", [internvl2_2b_v2pe_32k(), document_of_130k()], ids=["33k", "130k"])
def test_what_fits_is_kept_and_no_more(config, share):
    this = budget(config, memory_share=share)
    (plan,) = this.plans
    room = share * H100 - RESERVE
    found = this.estimate(0, plan)
    if found.total > room:  # not even the smallest
        assert plan.attention_kept == 0 and plan.decoder_layers == 24 and plan.tower_tiles > 0
        return
    work = this.recomputed_work(plan)
    others = (
        RecomputePlan(layers, kept, tower, tiles)
        for layers in range(25)
        for kept in range(layers + 1)
        for tower, tiles in ((0, 0), (24, 0), (0, 15))
    )
    fitting = [this.recomputed_work(other) for other in others if this.estimate(0, other).total <= room]
    assert work == min(fitting)


def test_attention_comes_first_where_documents_are_long():
    (plan,) = budget(document_of_130k()).plans
    assert plan.decoder_layers == 24 and plan.attention_kept > 12  # of layers none whole before all have that
    assert plan.tower_tiles > 0
    (more,) = budget(document_of_130k(), card=int(141 * GIB)).plans
    assert more.decoder_layers < 24 and more.attention_kept == more.decoder_layers


def test_more_memory_never_recomputes_more():
    work = []
    for card in range(40, 240, 50):
        this = budget(card=card * GIB)
        work.append(this.recomputed_work(this.plans[0]))
    assert work == sorted(work, reverse=True) and work[-1] < work[0]


def test_a_document_of_130_000_tokens_with_507_tiles_trains_on_one_card_of_80_gib():
    this = budget(document_of_130k())
    assert this.load.tokens == 130_000 and this.load.tiles == 507
    assert plan_of_stage(this, 0) is not None and shortage_foreseen(this, 0) is None


def test_a_pack_holds_no_more_tiles_than_its_tokens_allow():
    assert budget().load.tiles == 34000 // 256 == 132  # 135 are allowed
    assert budget(world=8).load.micro_batches == 4


def test_full_none_and_stated():
    assert budget(recompute="none").plans == (RecomputePlan(0),)
    assert budget(recompute="full").plans == (RecomputePlan(24, tower_tiles=15),)
    assert plan_of_stage(budget(recompute="stated"), 0) is None
    assert plan_of_stage(budget(card=None), 0) is None  # auto on the CPU: as stated
    (plan,) = budget(recompute="stated", recompute_attention=False).plans  # what is estimated
    assert min(plan.decoder_layers, plan.attention_kept, plan.tower_layers) >= 24


def test_every_stage_has_a_plan_of_its_own():
    config = internvl2_2b_v2pe_32k()
    config = replace(config, parallel=replace(config.parallel, pipeline_model_parallel_size=2))
    this = budget(config, world=2, card=24 * GIB)
    first, last = this.plans
    assert first.tower_tiles and not last.tower_tiles and last.decoder_layers <= 12
    assert [plan_of_stage(this, stage) for stage in range(2)] == [first, last]


def test_the_256k_run_keeps_attention_on_its_32_cards():
    this = budget(internvl2_2b_v2pe_256k(), world=32)
    (plan,) = this.plans
    assert plan.attention_kept == plan.decoder_layers  # the ring never runs a second time
    assert this.load.tokens == 262_144


def test_what_cannot_fit_is_refused_with_both_numbers():
    with pytest.raises(
        ConfigError, match=r"weights, gradients and optimizer state of a rank are 37.0 GiB, the card has 16"
    ):
        plan_of_stage(budget(card=16 * GIB), 0)
    with pytest.raises(ConfigError, match="optimizer.optimizer_cpu_offload moves"):
        plan_of_stage(budget(card=16 * GIB, recompute="stated"), 0)
    plan_of_stage(budget(card=40 * GIB), 0)
    config = internvl2_2b_v2pe_32k()
    offloading = replace(config, optimizer=replace(config.optimizer, optimizer_cpu_offload=True))
    plan_of_stage(budget(offloading, card=16 * GIB), 0)  # 12.3 GiB are left on the card


def test_what_may_not_fit_is_foreseen():
    told = shortage_foreseen(budget(document_of_130k(), card=48 * GIB), 0)
    assert told is not None and "the card has 48.0 GiB" in told and "a pack of 130000 tokens and 507 tiles" in told
    assert "parallel.context_parallel_size above 1" in told
    assert shortage_foreseen(budget(), 0) is None and shortage_foreseen(budget(card=None), 0) is None


def test_in_words():
    told = in_words(budget(), 0)
    assert "decoder layers kept whole" in told and "of 79.1 GiB (90% may be filled)" in told
    assert "15 tiles at a time" in told and "\n" not in told
    told = in_words(budget(recompute="stated"), 0)
    assert told.startswith(
        "recompute: 0 of 24 decoder layers kept whole, 24 computed again, 0 of them without attention"
    )
    assert "0 of 24 tower layers kept whole" in told and "may be filled" not in told


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError(), RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: out of memory")],
)  # fmt: skip
def test_running_out_of_memory_names_the_pack_and_what_would_help(error):
    with pytest.raises(MemoryShortageError) as raised, shortage_explained(17, (33375, 130), budget()):
        raise error
    told = str(raised.value)
    assert told.startswith("step 17: out of memory; this rank's longest pack has 33375 tokens and 130 tiles")
    for setting in (
        "train.memory_share (now 0.9)",
        "data.max_packed_tokens below 34000",
        "context_parallel_size above 1",
    ):
        assert setting in told
    assert "Nothing of this step is saved" in told and raised.value.__cause__ is error
    assert exit_status.of(raised.value) == exit_status.MEND


def test_the_memory_a_card_has_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIB // 2, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 78 * GIB)
    with pytest.raises(MemoryShortageError, match=r"78.0 GiB in tensors at most, 0.5 GiB of 80.0 GiB free"):
        with shortage_explained(1, (10, 2)):
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="^shapes$"), shortage_explained(1, (10, 2), budget()):
        raise RuntimeError("shapes")


def test_advice_goes_by_what_is_set():
    assert memory.advice(budget(recompute="none")).startswith("train.recompute full, ")
    assert memory.advice(budget(recompute="full")).startswith("data.max_packed_tokens")
