"""One training step of a small InternVL2 in any parallel layout, for comparison with one process.

Runs inside a `WorkerPool`. Weights come from one full state, gradients go back to one full state, so that two layouts
can be compared tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_v2pe.kernels import choice
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.head import LossSums, Targets
from megatron_v2pe.models.linear import LinearAdapter
from megatron_v2pe.models.lora import put_adapters
from megatron_v2pe.models.lora_plan import LowRankPlan
from megatron_v2pe.models.micro_batch import DocumentSets, MicroBatch, PackCutter, TensorPack, WholePack
from megatron_v2pe.models.norms import PARTIAL_GRADIENT
from megatron_v2pe.models.padding import paddings
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.parallel.token_draws import TokenDraws
from megatron_v2pe.parallel.zigzag import ZigzagLayout
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import gather_full, load_full

NUM_SETS = 3
"""Documents belong by turns to so many data sets, the last of which has none."""
GRADIENT_FLOOR = 1e-4
"""Gradients are compared relative to their largest entry, but not below this share of the largest of all tensors."""


@dataclass(frozen=True)
class Pack:
    """One micro-batch in plain lists and tensors."""

    input_ids: Tensor
    position_ticks: Ticks
    seqlens: tuple[int, ...]
    labels: Tensor
    """Already shifted."""
    weights: Tensor
    pixel_values: Tensor
    """[tiles, 3, size, size]; tiles may be 0."""


@dataclass(frozen=True)
class Case:
    """What to run."""

    hf_config: dict[str, Any]
    layout: ParallelConfig
    packs: Sequence[Pack]
    """All packs of the step in the run's order; data-parallel rank r takes r, r + dp, ..."""
    weights: dict[str, Tensor]
    image_token_id: int
    policy: StridePolicy = field(default_factory=lambda: StridePolicy("default"))
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)
    drop_path_seed: int | None = None
    frozen: dict[str, Any] = field(default_factory=dict)
    """Arguments of `train.ddp.freeze`; nothing is frozen by default."""
    adapters: LowRankPlan | None = None
    """LoRA on the linears; its factors are among `weights`."""
    planted_break: str | None = None
    device: str = "cpu"
    """Where it runs: `cpu`, or `cuda` in a pool of that device."""


@dataclass
class Result:
    """What one step gave, identical on every rank."""

    loss: float
    set_sums: list[float]
    """What each data set gave to the loss, divided by the step's denominator: they add up to `loss`."""
    gradients: dict[str, Tensor]
    logits: list[Tensor]
    """Per pack, [S, vocab_size]; only from layouts of one data-parallel rank."""


def random_weights(hf_config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Draw a full state whose every tensor matters: nothing is exactly 0 or 1. Runs on one process."""
    from megatron_v2pe.workshop import full_state

    with built(hf_config, ParallelConfig(), ModelOptions(params_dtype=torch.float64), StridePolicy("default"), 0) as m:
        generator = torch.Generator().manual_seed(seed)
        state: dict[str, Tensor] = {}
        for piece in full_state.sharded_pieces(m, lambda parameter: parameter.detach()):
            assert piece.data is not None
            noise = torch.randn(piece.data.shape, generator=generator, dtype=torch.float64)
            norm = "norm" in piece.key and piece.key.endswith("weight") or piece.key.endswith((".ls1", ".ls2"))
            width = piece.data.shape[-1] if piece.data.dim() > 1 else 1
            values = 1.0 + 0.2 * noise if norm else noise * (0.1 if width == 1 else width**-0.5)
            whole = state.setdefault(piece.key, torch.zeros(piece.global_shape, dtype=torch.float64))
            window = (slice(o, o + n) for o, n in zip(piece.global_offset, piece.data.shape, strict=True))
            whole[tuple(window)] = values
        return state


def run(case: Case) -> Result:
    """Run one step of a case on this rank."""
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_v2pe.train.ddp import wrap
    from megatron_v2pe.train.step import run_micro_batches

    options = ModelOptions(params_dtype=case.dtype, **case.options)
    adapt = None if case.adapters is None else partial(put_adapters, case.adapters)
    made = built(case.hf_config, case.layout, options, case.policy, case.image_token_id, adapt)
    with made as model, ExitStack() as undo:
        load_full(model, case.weights)
        freeze_parts(model, case)
        groups = ProcessGroupCollection.use_mpu_process_groups()
        wrapped = wrap(model, case.layout, groups, torch.device(case.device))
        if case.planted_break:
            broken = BREAKS[case.planted_break](model)
            undo.enter_context(broken or nullcontext())
        dp_rank = parallel_state.get_data_parallel_rank()
        dp_size = parallel_state.get_data_parallel_world_size()
        shares = (micro_batch(case, index, model, by_set=True) for index in range(dp_rank, len(case.packs), dp_size))
        mine = [share.mapped(lambda tensor: tensor.to(case.device)) for share in shares]
        denominator = sum(pack.weights.double().sum().item() for pack in case.packs) or 1.0
        logits = [] if dp_size > 1 else _logits(wrapped, mine)
        wrapped.zero_grad_buffer()
        shares = run_micro_batches(wrapped, mine, len(mine), denominator, num_sets=NUM_SETS)
        dist.all_reduce(shares)
        loss, *set_sums = shares.tolist()
        _gather_distributed_gradients(wrapped)
        gradients = gather_full(model, lambda parameter: getattr(parameter, "main_grad", None))
        for name, parameter, padding in paddings(model):
            if parameter.requires_grad and padding.of(parameter.main_grad).any():  # type: ignore[attr-defined]
                raise AssertionError(f"{name}: what is padding has gradients")
        return Result(loss, [one / denominator for one in set_sums], gradients, logits)


def compare(reference: Result, other: Result) -> dict[str, float]:
    """Return relative errors: `loss`, `sets` (worst data set), `logits` (worst pack) and `gradients` (worst tensor)."""
    floor = max(GRADIENT_FLOOR * max(g.abs().max().item() for g in reference.gradients.values()), 1e-30)
    assert reference.gradients.keys() == other.gradients.keys()
    gradients = {
        name: ((g - other.gradients[name]).abs().max() / g.abs().max().clamp(min=floor)).item()
        for name, g in reference.gradients.items()
    }
    errors = {
        "loss": abs(reference.loss - other.loss) / max(abs(reference.loss), 1e-12),
        "sets": max(abs(a - b) for a, b in zip(reference.set_sums, other.set_sums, strict=True))
        / max(abs(reference.loss), 1e-12),
        "gradients": max(gradients.values()),
        "logits": max(
            (
                ((a - b).abs().max() / a.abs().max()).item()
                for a, b in zip(reference.logits, other.logits, strict=False)
            ),
            default=0.0,
        ),
    }
    errors["worst_gradient"] = max(gradients, key=lambda name: gradients[name])  # type: ignore[assignment]
    return errors


def freeze_parts(model: Any, case: Case) -> None:
    """Freeze what a case says."""
    from megatron_v2pe.train.ddp import freeze
    from megatron_v2pe.train.new_rows import learn_new_rows

    parts = {name: value for name, value in case.frozen.items() if name != "tables"}
    freeze(model, **{"backbone": False, "llm": False, "projector": False, **parts})
    if case.frozen.get("tables"):
        learn_new_rows(model, 500, 503)


def micro_batch(case: Case, index: int, model: Any, by_set: bool = False) -> MicroBatch:
    """Return pack `index` of a case as this rank takes it; `by_set`: sums of data sets are asked for."""
    pack = case.packs[index]
    tiles = model.coordinates.tiles(pack.pixel_values.shape[0])
    pixels = pack.pixel_values[tiles.start : tiles.stop].to(case.dtype) if model.pre_process else None
    whole = TensorPack(
        pack.input_ids,
        pack.position_ticks,
        pack.seqlens,
        labels=pack.labels,
        loss_weights=pack.weights,
        num_tiles=[pack.pixel_values.shape[0]],
        tiles=pixels,
    )
    cutter = PackCutter(
        model.coordinates, case.image_token_id, model.internvl.tokens_per_tile, first_stage=model.pre_process
    )
    sets = DocumentSets(tuple((index + number) % (NUM_SETS - 1) for number in range(len(pack.seqlens))), NUM_SETS)
    drop_path = None if case.drop_path_seed is None else DropPathKey(case.drop_path_seed, index)
    return cutter.cut(whole, drop_path, sets if by_set else None)


def _logits(wrapped: nn.Module, batches: Sequence[MicroBatch]) -> list[Tensor]:
    """Forward every pack; its logits [S, vocab_size], without padding, are handed to every rank."""
    from megatron.core import parallel_state

    found: list[Tensor] = []
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    stages = dist.get_process_group_ranks(pipeline)
    model: Any = wrapped.module
    with torch.no_grad():
        for batch in batches:
            stage = stages.index(dist.get_rank())
            if stage > 0:
                model.set_input_tensor([_receive(stages[stage - 1]).to(batch.input_ids.device)])
            output = model(replace(batch, targets=None))
            if stage < len(stages) - 1:
                _send(output, stages[stage + 1])
            box = [output.cpu() if stage == len(stages) - 1 else None]
            dist.broadcast_object_list(box, src=stages[-1], group=pipeline)
            shares: list[Any] = [None] * model.pg_collection.cp.size()
            dist.all_gather_object(shares, box[0], group=model.pg_collection.cp)
            found.append(batch.layout.unshard(shares))
    return found


def _send(tensor: Tensor, to: int) -> None:
    dist.send_object_list([tensor.cpu().clone()], dst=to)


def _receive(source: int) -> Tensor:
    box: list[Any] = [None]
    dist.recv_object_list(box, src=source)
    return box[0]


def _gather_distributed_gradients(wrapped: Any) -> None:
    """Undo the distributed optimizer's reduce-scatter, so that every rank holds whole gradients."""
    if not wrapped.ddp_config.use_distributed_optimizer:
        return
    for group in wrapped.bucket_groups:
        for bucket in group.buckets:
            ranks = group.intra_distributed_optimizer_instance_size
            shard = bucket.grad_data.view(ranks, -1)[group.intra_distributed_optimizer_instance_rank].clone()
            dist.all_gather_into_tensor(bucket.grad_data, shard, group=group.intra_distributed_optimizer_instance_group)


def _unmask_padding(model: Any) -> None:
    """Let padded vocabulary columns into the softmax."""
    if model.post_process:
        model.language_model.unpadded_vocab_size = model.internvl.llm.padded_vocab_size


def _forget_norm_reduction(model: Any) -> None:
    """Drop the sum of norm gradients over tensor-parallel ranks (sequence parallelism)."""
    for parameter in model.parameters():
        if getattr(parameter, "sequence_parallel", False):
            parameter.sequence_parallel = False


def _forget_head_norm_reduction(model: Any) -> None:
    """Drop the sum of the gradients of queries' and keys' norms over tensor-parallel ranks."""
    for parameter in model.parameters():
        setattr(parameter, PARTIAL_GRADIENT, False)


def _forget_tied_reduction(model: Any) -> None:
    """Keep the gradient of a tied weight of the first and of the last pipeline stage to themselves."""
    model.share_embeddings_and_output_weights = False


def _forget_head_reduction(model: Any) -> None:
    """Drop the sum of the head's input gradient over tensor-parallel ranks."""
    if model.post_process:
        model.language_model.output_layer.allreduce_dgrad = False
        model.language_model.output_layer.disable_grad_reduce = True


def _local_document_borders(model: Any) -> None:
    """Attend across documents."""
    original = model.rotary.cos_sin
    stage_decode = model.language_model.decode

    def decode(hidden: Tensor | None, pack: Any) -> Tensor:
        pack.layout = replace(pack.layout, lengths=(pack.layout.num_tokens,))
        return stage_decode(hidden, pack)

    model.language_model.decode = decode
    model.rotary.cos_sin = original


def _positions_from_zero(model: Any) -> None:
    """Count tokens instead of using the given positions, on every stage but the first."""
    if model.pre_process:
        return
    original = model.rotary.cos_sin

    def cos_sin(ticks: Ticks, *others: Any) -> tuple[Tensor, Tensor]:
        return original(ticks.mapped(lambda values: torch.arange(len(values)) * ticks.denominator), *others)

    model.rotary.cos_sin = cos_sin


def _local_denominator(model: Any) -> None:
    """Scale the loss by a rank-dependent factor, as local denominators do."""
    if model.post_process:
        original = model.language_model.loss_sums
        factor = 1.0 + 0.1 * dist.get_rank()
        model.language_model.loss_sums = lambda *given: LossSums(*(one * factor for one in original(*given)))


def _sets_of_other_rows(model: Any) -> None:
    """Count every row for the data set of the row before it."""
    if model.post_process:
        original = model.language_model.loss_sums
        model.language_model.loss_sums = lambda hidden, targets: original(
            hidden, replace(targets, sets=None if targets.sets is None else targets.sets.roll(1))
        )


def _zigzag_over_the_pack(model: Any) -> Any:
    """Cut the whole pack at once instead of document by document, and attend as if each had been cut."""
    original = ZigzagLayout.padded_positions

    def padded_positions(layout: ZigzagLayout, rank: int) -> Tensor:
        return original(replace(layout, lengths=(layout.num_tokens,)), rank)

    return mock.patch.object(ZigzagLayout, "padded_positions", padded_positions)


def _forget_documents_order(model: Any) -> Any:
    """Attend over tokens as all-to-all brings them, one rank's behind the other's."""
    return mock.patch.object(ZigzagLayout, "documents_in_order", lambda layout: torch.arange(layout.num_tokens))


def _shift_after_the_cut(model: Any) -> Any:
    """Let each rank take its targets from the tokens it holds: wrong or lost at the ends of its chunks."""
    original = PackCutter.cut

    def cut(cutter: PackCutter, pack: WholePack, drop_path: DropPathKey | None, sets: DocumentSets) -> MicroBatch:
        batch, labels, weights = original(cutter, pack, drop_path), pack.labels, pack.loss_weights
        assert labels is not None and weights is not None
        rank = model.coordinates.context_parallel_rank
        in_place = batch.layout.shard(labels.roll(1), rank, -100), batch.layout.shard(weights.roll(1), rank, 0.0)
        shifted = [torch.cat([values[1:], values.new_full((1,), -100)]) for values in in_place]
        of_tokens = torch.repeat_interleave(torch.tensor(sets.of_documents), torch.tensor(pack.seqlens))
        of_mine = batch.layout.shard(of_tokens, rank, 0)
        return replace(batch, targets=Targets.from_labels(*shifted, sets=of_mine, num_sets=sets.count))

    return mock.patch.object(PackCutter, "cut", cut)


def _forget_feature_reduction(model: Any) -> Any:
    """Keep each tensor-parallel rank's gradient of image features to itself."""
    name = "megatron.core.tensor_parallel.copy_to_tensor_model_parallel_region"
    return mock.patch(name, lambda features, group: features)


def _forget_tower_reduction(model: Any) -> None:
    """Do not sum the gradients of replicated towers."""
    from megatron.core.distributed import finalize_model_grads

    model.config.finalize_model_grads_func = finalize_model_grads


def _collect_by_hooks(model: Any) -> None:
    """No break, another way: weight gradients are formed by themselves, and Megatron-Core's hooks add them."""
    for module in model.modules():
        if hasattr(module, "gradient_accumulation_fusion"):
            module.gradient_accumulation_fusion = False


def _by_triton(model: Any) -> Any:
    """No break, another form: every operation that has a Triton kernel runs it, on the CPU in Triton's interpreter."""
    return choice.forced("triton")


def _forget_marks(model: Any) -> Any:
    """Let gradients that are in their buffers already be added once more, as ones."""
    return mock.patch(
        "megatron_v2pe.models.linear.WeightGradient.result", lambda collected: torch.ones_like(collected.parameter)
    )


def _forget_shared_factors(model: Any) -> Any:
    """Keep each tensor-parallel rank's gradient of an adapter's whole factors to itself."""
    return mock.patch.object(LinearAdapter, "shared", lambda adapter, parameter: parameter)


def _draw_by_local_rows(model: Any) -> Any:
    """Draw dropout by a token's place on its rank, and by an entry's place in the rank's columns."""
    original = TokenDraws.keep

    def keep(draws: TokenDraws, name: str, rows: slice, columns: range, rate: float) -> Tensor:
        local = replace(draws, tokens=torch.arange(len(draws.tokens)))
        return original(local, name, rows, range(len(columns)), rate)

    return mock.patch.object(TokenDraws, "keep", keep)


BREAKS: dict[str, Callable[[Any], AbstractContextManager[Any] | None]] = {
    "gradients_by_hooks": _collect_by_hooks,
    "triton_kernels": _by_triton,
    "forgotten_marks": _forget_marks,
    "unmasked_padding": _unmask_padding,
    "norm_reduction": _forget_norm_reduction,
    "head_reduction": _forget_head_reduction,
    "head_norm_reduction": _forget_head_norm_reduction,
    "tied_reduction": _forget_tied_reduction,
    "document_borders": _local_document_borders,
    "stage_positions": _positions_from_zero,
    "sets_of_other_rows": _sets_of_other_rows,
    "local_denominator": _local_denominator,
    "zigzag_over_the_pack": _zigzag_over_the_pack,
    "documents_order": _forget_documents_order,
    "shift_after_the_cut": _shift_after_the_cut,
    "feature_reduction": _forget_feature_reduction,
    "tower_reduction": _forget_tower_reduction,
    "shared_factors": _forget_shared_factors,
    "local_draws": _draw_by_local_rows,
}
