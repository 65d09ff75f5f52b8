"""A run whose adapters begin with those of a PEFT folder or of another run, in place of drawn ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from megatron_v2pe.checkpoint.hf.open_source import check_is_base, open_megatron
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.checkpoint.low_rank.open_adapter import open_adapter
from megatron_v2pe.checkpoint.low_rank.piece_rows import piece_name, piece_table
from megatron_v2pe.checkpoint.low_rank.token_rows import TokenRows
from megatron_v2pe.checkpoint.parts import held_parts
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import Learning
from megatron_v2pe.models.lora_plan import LowRankPlan
from megatron_v2pe.train.adapter_settings import PART_RANKS

SETTING = "adapter.start"


@dataclass(frozen=True)
class RunTokens:
    """What a run has of tokens, for rows of them that an adapter begins with."""

    tokenizer: Tokenizer
    """With its new tokens."""
    rows: range | None
    """Rows of the vocabulary's tables that its checkpoints hold."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, model: InternVLConfig, learning: Learning, table_rows: range | None) -> RunTokens:
        """Return those of a run; for `table_rows` see `new_tokens.rows_of_checkpoints`."""
        return cls(tokenizer, range(model.llm.vocab_size) if learning.llm else table_rows)


def starting_tensors(
    start: str, plan: LowRankPlan, model: InternVLConfig, tokens: RunTokens | None = None
) -> dict[str, Tensor]:
    """Return the tensors that a run's adapters begin with, by checkpoint key.

    A factor may have a smaller rank than the run's: it fills the first rows of `lora_A` and columns of `lora_B`, the
    others begin as they are drawn. Another scaling is multiplied into `lora_B`.

    Args:
        start: the setting: a PEFT folder, or a run that trained an adapter.
        plan: adapters of this run.
        model: that is trained.
        tokens: of this run; None: rows of tokens are not looked at.

    Raises:
        ConfigError: there is no adapter, or this run has no place for a part of it; names it and the setting.
        CheckpointError: it is damaged, or of another model.
    """
    adapter = open_adapter(Path(start), model, SETTING)
    if adapter.rows is not None and tokens is not None:
        _check_rows(adapter.rows, tokens)
    table = mapping_table(model)
    keys = {row.key for row in adapter.table.tensors if row.name in adapter.whole}
    named = adapter.named(piece_table(plan.pieces, table, keys, adapter.source))
    reached = {row.key for row in named.table.tensors if row.name in named.changes}
    changed = {row.key for row in adapter.table.tensors if row.name in adapter.changes}
    if left := sorted(changed - reached):
        raise ConfigError(
            f"{SETTING} {adapter.source}: changes {len(left)} linears that are no targets of this run, such as "
            f"{left[0]}: name them in adapter.targets; where it is the head or the embedding, which no target names, "
            "merge the adapter into its base first"
        )
    found = dict(named.whole)
    for linear, pieces in plan.pieces.items():
        part = linear.split(".")[0]
        settings = plan.settings[part]
        for piece in pieces:
            change = named.changes.get(piece_name(linear, piece.name))
            if change is None:
                continue
            if change.rank > settings.rank:
                raise ConfigError(
                    f"{SETTING} {adapter.source}: its factors of {linear} ({piece.name}) have rank {change.rank}, this "
                    f"run's {settings.rank}: set adapter.{PART_RANKS[part]} {change.rank}, or more"
                )
            key = f"{linear}.adapter.{piece.name}"
            found[f"{key}.lora_A"] = change.down
            found[f"{key}.lora_B"] = change.up * (change.scaling / settings.scaling)
    return found


def _check_rows(rows: TokenRows, tokens: RunTokens) -> None:
    """Check that a run has the tokens whose rows an adapter holds, and stores these rows.

    Raises:
        ConfigError: it has not, or does not; names the tokens.
    """
    for token in rows.tokens:
        if (known := tokens.tokenizer.known_id(token.content)) != token.id:
            has = "does not have" if known is None else f"has as {known}"
            raise ConfigError(
                f"{SETTING} {rows.source}: brings the token {printable(token.content)[:80]!r} with id {token.id}, "
                f"which this run {has}: name the file of its tokens as model.add_tokens"
            )
    if tokens.rows is None or not {*rows.ids} <= {*tokens.rows}:
        own = "no rows" if tokens.rows is None else f"rows {tokens.rows.start} to {tokens.rows.stop - 1}"
        raise ConfigError(
            f"{SETTING} {rows.source}: holds rows {rows.ids[0]} to {rows.ids[-1]} of embedding and head, and "
            f"checkpoints of this run hold {own} of them: set model.add_tokens, or "
            "model.train_new_tokens where the base has the tokens; or merge the adapter into its base first "
            "(tools/merge_adapter.py)"
        )


def begin_with(
    start: str,
    stage: nn.Module,
    plan: LowRankPlan,
    model: InternVLConfig,
    base: Path,
    verify: bool = True,
    tokens: RunTokens | None = None,
) -> None:
    """Put the tensors that a run's adapters begin with into a stage that has its base's weights; every rank calls this.

    Args:
        start: see `starting_tensors`.
        stage: of this rank, with the run's adapters on it, parts that do not learn frozen.
        plan: adapters of this run.
        model: that is trained.
        base: Megatron checkpoint of the base's weights.
        verify: compare checksums.
        tokens: of this run, see `starting_tensors`.

    Raises:
        ConfigError: see `starting_tensors`; or a part that the adapter holds in full does not learn in this run.
        CheckpointError: see `starting_tensors`; or the adapter is of another base, with both fingerprints.
    """
    tensors, adapter = starting_tensors(start, plan, model, tokens), open_adapter(Path(start), model, SETTING)
    check_is_base(adapter, open_megatron(base, verify))
    _put(tensors, stage, start)
    if adapter.rows is not None:
        _put_rows(adapter.rows, stage)


def _put_rows(rows: TokenRows, stage: nn.Module) -> None:
    for _, parts in held_parts(stage):
        for part in parts:
            if part.key in rows.tables:
                with torch.no_grad():
                    rows.put(part.key, part.view, part.begin[0])


def _put(tensors: Mapping[str, Tensor], stage: nn.Module, start: str) -> None:
    parameters = dict(stage.named_parameters())
    for name, parts in held_parts(stage, adapters=True):
        for part in parts:
            values = tensors.get(part.key)
            if values is None:
                continue
            if not parameters[name].requires_grad:
                raise ConfigError(
                    f"{SETTING} {start}: holds {part.key}, trained in full, which does not learn in this run: let its "
                    "part learn (model.freeze_mlp false for the projector), or merge the adapter into its base first"
                )
            view = part.view
            if part.key.endswith(".lora_A"):
                view = view[: values.shape[0]]
            elif part.key.endswith(".lora_B"):
                view = view[:, : values.shape[1]]
            with torch.no_grad():
                replace(part, view=view).put(values.to(view.dtype))
