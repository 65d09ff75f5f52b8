"""What a run recomputes so that a step fits into its card, by the estimate of `models/memory.py` for each stage.

Everything here is decided from settings, the model's sizes and one number of bytes, so that all ranks decide alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import torch

from megatron_v2pe.errors import ConfigError, MemoryShortageError
from megatron_v2pe.models import memory
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import Learning
from megatron_v2pe.models.lora_plan import LowRankPlan
from megatron_v2pe.models.memory import GIB, RESERVE, TOWER_TILES, Footprint, Load, Numbers
from megatron_v2pe.models.recompute import RecomputePlan
from megatron_v2pe.train.adapter_plan import learning_of
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.optimizers.settings import OptimizerSettings

MOST_LAYERS = 1000
"""More than any stage has: a plan with as many means all."""


@dataclass(frozen=True)
class MemoryBudget:
    """What decides about memory, the same on every rank."""

    config: ExperimentConfig
    model: InternVLConfig
    world_size: int
    card: int | None
    """Bytes of the smallest card of the run; None where it runs on the CPU, or where no card is named."""
    adapters: LowRankPlan | None = None
    """Adapters of the run."""

    @property
    def stages(self) -> int:
        """Pipeline stages."""
        return self.config.parallel.pipeline_model_parallel_size

    @property
    def load(self) -> Load:
        """The pack's budget: packs of this many tokens and tiles are allowed, so one will come."""
        data, ranks = self.config.data, self.config.parallel.data_parallel_size(self.world_size)
        tokens = data.max_packed_tokens
        tiles = min(data.num_images_expected, tokens // self.model.tokens_per_tile)
        return Load(tokens, tiles, tokens, self.config.train.micro_batches(ranks))

    @property
    def numbers(self) -> Numbers:
        """Types and chunks."""
        config = self.config
        itemsize = 2 if config.train.precision == "bf16" else 4
        return Numbers(
            itemsize=itemsize,
            optimizer_bytes=config.optimizer.state_bytes_per_parameter(itemsize) + config.optimizer.average_bytes,
            factor_bytes=config.optimizer.state_bytes_per_parameter(4) + config.optimizer.average_bytes,
            head_chunk=config.model.head_chunk_size,
            mlp_chunk=config.model.mlp_chunk_tokens,
            norm_copies=2 if config.train.device == "cpu" else 1,
            offloaded=1.0 if config.optimizer.keeps_state_on_host else 0.0,
        )

    @property
    def learning(self) -> Learning:
        """What is not frozen."""
        return learning_of(self.config.model, self.adapters)

    def estimate(self, stage: int, plan: RecomputePlan) -> Footprint:
        """Return the memory of a rank of a stage."""
        layout = self.config.parallel
        ranks = layout.data_parallel_size(self.world_size)
        return memory.estimate(self.model, layout, stage, ranks, self.load, plan, self.numbers, self.learning)

    @cached_property
    def plans(self) -> tuple[RecomputePlan, ...]:
        """What each stage recomputes."""
        return tuple(self._plan(stage) for stage in range(self.stages))

    def _plan(self, stage: int) -> RecomputePlan:
        kind = self.config.train.recompute
        if kind == "none":
            return RecomputePlan(0)
        if kind == "stated" or (kind == "auto" and self.card is None):
            return _stated(self.config)
        layers = self.config.parallel.layers_per_stage(self.model.llm.num_layers)[stage]
        if kind == "full":
            return RecomputePlan(layers, tower_tiles=TOWER_TILES if stage == 0 else 0)
        return self._kept_by_memory(stage, layers)

    def _kept_by_memory(self, stage: int, layers: int) -> RecomputePlan:
        """Return, of the plans that fit, the one that recomputes the least; where none fits, the smallest."""
        assert self.card is not None
        room = int(self.card * self.config.train.memory_share) - RESERVE
        smallest = [replace(tower, decoder_layers=layers) for tower in self._towers(stage)]
        best, best_work = min(smallest, key=lambda plan: self.estimate(stage, plan).total), float("inf")
        for tower in self._towers(stage):
            for whole in range(layers, -1, -1):
                recomputed = layers - whole
                kept = self._most_attention(stage, replace(tower, decoder_layers=recomputed), room)
                if kept is None:
                    continue
                plan = replace(tower, decoder_layers=recomputed, attention_kept=kept)
                if (work := self.recomputed_work(plan)) < best_work:
                    best, best_work = plan, work
        return best

    def _towers(self, stage: int) -> Iterator[RecomputePlan]:
        """Yield what may be done with the tower: tiles a few at a time, or all at once with 0 to all layers again."""
        if stage > 0 or not self.load.tiles:
            yield RecomputePlan(0)
            return
        for tiles in TOWER_TILES, TOWER_TILES // 3, 1:
            yield RecomputePlan(0, tower_tiles=tiles)
        for layers in range(self._tower_layers, -1, -1):
            yield RecomputePlan(0, tower_layers=layers)

    def _most_attention(self, stage: int, plan: RecomputePlan, room: int) -> int | None:
        """Return of how many recomputed layers attention's result fits as well, None if not even none does."""
        if self.estimate(stage, plan).total > room:
            return None
        low, high = 0, plan.decoder_layers
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.estimate(stage, replace(plan, attention_kept=middle)).total <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    @property
    def _tower_layers(self) -> int:
        return self.model.select_layer % (self.model.vision.num_layers + 1)

    def recomputed_work(self, plan: RecomputePlan) -> float:
        """Return the floating-point operations of a pack that a plan does a second time.

        Attention is counted at the longest document that is allowed. Fewer tiles at a time count a little more
        than they do: they fill a GPU less.
        """
        llm, load, vision = self.model.llm, self.load, self.model.vision
        width = llm.hidden_size
        products = 2 * load.tokens * (width * (llm.qkv_size + llm.query_size) + 3 * width * llm.ffn_hidden_size)
        attention = 2 * llm.query_size * load.tokens * min(self.config.data.max_seq_length, load.tokens)
        layers = plan.decoder_layers * (products + attention) - plan.attention_kept * attention
        tokens = (self.model.tile_size // vision.patch_size) ** 2 + 1
        v = vision.hidden_size
        tower = load.tiles * tokens * (2 * (4 * v * v + 2 * v * vision.ffn_hidden_size) + 4 * tokens * v)
        again = self._tower_layers * (1 + 0.5 / plan.tower_tiles) if plan.tower_tiles else plan.tower_layers
        return layers + again * tower


def _stated(config: ExperimentConfig) -> RecomputePlan:
    """Return the plan that comes nearest to the recompute settings; only for estimates, Megatron-Core reads them."""
    train = config.train
    layers = 0
    if train.recompute_granularity == "full":
        layers = MOST_LAYERS if train.recompute_method == "uniform" else train.recompute_num_layers or 0
    kept = 0 if train.recompute_attention else layers
    return RecomputePlan(layers, kept, MOST_LAYERS if train.recompute_vision else 0)


def plan_of_stage(budget: MemoryBudget, stage: int) -> RecomputePlan | None:
    """Return what a stage recomputes, None where the recompute settings say it.

    Raises:
        ConfigError: what has to be in memory whatever is recomputed is more than the card has.
    """
    kind = budget.config.train.recompute
    check_fits(budget)
    if kind == "stated" or (kind == "auto" and budget.card is None):
        return None
    return budget.plans[stage]


def check_fits(budget: MemoryBudget) -> None:
    """Refuse what cannot fit: parameters, their gradients and the optimizer's state are known to the byte.

    Raises:
        ConfigError: both numbers are printed.
    """
    if budget.card is None:
        return
    for stage in range(budget.stages):
        found = budget.estimate(stage, RecomputePlan(MOST_LAYERS, tower_tiles=1))
        state = found.weights + found.gradients + found.optimizer
        if state > budget.card:
            raise ConfigError(
                f"weights, gradients and optimizer state of a rank{_of_stage(budget, stage)} are {_gib(state)}, the "
                f"card has {_gib(budget.card)}: {_more_room(budget)}"
            )


def shortage_foreseen(budget: MemoryBudget, stage: int) -> str | None:
    """Say that a stage is estimated to take more than the card has, None where it is not."""
    found = budget.estimate(stage, budget.plans[stage])
    if budget.card is None or found.total + RESERVE <= budget.card:
        return None
    return (
        f"a pack of {budget.load.tokens} tokens and {budget.load.tiles} tiles is estimated to take "
        f"{_gib(found.total + RESERVE)} of a rank{_of_stage(budget, stage)}, the card has {_gib(budget.card)}: "
        f"memory may run out. What would help: {advice(budget)}"
    )


def _of_stage(budget: MemoryBudget, stage: int) -> str:
    return f" of pipeline stage {stage}" if budget.stages > 1 else ""


def _more_room(budget: MemoryBudget) -> str:
    """Return the settings that make room for parameters and optimizer."""
    settings = ["more ranks share it with parallel.use_distributed_optimizer"]
    settings += ["parallel.tensor_model_parallel_size and pipeline_model_parallel_size cut the model"]
    if switch := _host_state_switch(budget.config.optimizer):
        settings.append(f"{switch} moves the optimizer's state to the host")
    return "; ".join(settings)


def in_words(budget: MemoryBudget, stage: int) -> str:
    """Say in one line what a stage keeps and recomputes, and what it is estimated to take."""
    plan = budget.plans[stage]
    found = budget.estimate(stage, plan)
    layers = budget.config.parallel.layers_per_stage(budget.model.llm.num_layers)[stage]
    recomputed = min(plan.decoder_layers, layers)
    whole, attention = layers - recomputed, min(plan.attention_kept, recomputed)
    parts = [f"{whole} of {layers} decoder layers kept whole"]
    if recomputed:
        parts.append(f"{recomputed} computed again, {attention} of them without attention")
    if stage == 0 and budget.load.tiles:
        run = budget._tower_layers
        again = min(plan.tower_layers, run)
        tiles = f"tower computed again {plan.tower_tiles} tiles at a time"
        parts.append(tiles if plan.tower_tiles else f"{run - again} of {run} tower layers kept whole")
    room, taken = "", found.total
    if budget.card is not None:
        taken += RESERVE
        room = f" of {_gib(budget.card)}"
        if budget.config.train.recompute == "auto":
            room += f" ({budget.config.train.memory_share:.0%} may be filled)"
    where = f" of pipeline stage {stage}" if budget.stages > 1 else ""
    return f"recompute{where}: {', '.join(parts)}; estimated {_gib(taken)}{room}"


def advice(budget: MemoryBudget) -> str:
    """Return which settings make a step take less memory, the nearest first."""
    config, settings = budget.config, list[str]()
    if config.train.recompute == "auto":
        settings.append(f"a lower train.memory_share (now {config.train.memory_share})")
    elif config.train.recompute != "full":
        settings.append("train.recompute full")
    settings.append(f"data.max_packed_tokens below {config.data.max_packed_tokens}")
    settings.append(f"parallel.context_parallel_size above {config.parallel.context_parallel_size}")
    if switch := _host_state_switch(config.optimizer):
        settings.append(switch)
    return ", ".join(settings)


def _host_state_switch(settings: OptimizerSettings) -> str | None:
    """Return the setting that would move the optimizer's state to the host, None where there is none or it is on."""
    switch = settings.host_state_setting
    return None if switch is None or settings.keeps_state_on_host else f"optimizer.{switch}"


@contextmanager
def shortage_explained(step: int, longest: tuple[int, int], budget: MemoryBudget | None = None) -> Iterator[None]:
    """Raise what says that a device's memory has run out as an error that says what of, and what would help.

    Args:
        step: the step that is done inside, from 1.
        longest: tokens and tiles of the longest of this rank's packs.
        budget: memory budget of the run.

    Raises:
        MemoryShortageError: in place of PyTorch's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).strip()
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "out of memory" not in text.lower():
            raise
        tokens, tiles = longest
        helps = "" if budget is None else f". What would help: {advice(budget)}"
        raise MemoryShortageError(
            f"step {step}: out of memory; this rank's longest pack has {tokens} tokens and {tiles} tiles"
            f"{_allocated()}: {text.splitlines()[0] if text else type(error).__name__}{helps}. Nothing of this step is "
            "saved, the last checkpoint is whole"
        ) from error


def _allocated() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    most = torch.cuda.max_memory_allocated()
    return f" ({_gib(most)} in tensors at most, {_gib(free)} of {_gib(total)} free)"


def _gib(number: float) -> str:
    return f"{number / GIB:.1f} GiB"


def packs_per_step(budget: MemoryBudget) -> int:
    """Return how many packs a step of the whole run takes."""
    ranks = budget.config.parallel.data_parallel_size(budget.world_size)
    return ranks * budget.config.train.micro_batches(ranks)


def least_packs(tokens: int, tiles: int, budget: MemoryBudget) -> int:
    """Return how many packs so many tokens and tiles fill at least."""
    data = budget.config.data
    return max(ceil(tokens / data.max_packed_tokens), ceil(tiles / data.num_images_expected), 1)
