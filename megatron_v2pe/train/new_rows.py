"""Rows of new tokens that learn where the rest of the language model is frozen (`model.train_new_tokens`).

The tables of the vocabulary are trained as whole parameters. Once a step's gradients are complete, on every rank and
in every layout, those of all other rows are made zero: norm and clipping do not see them, an optimizer's moments of
them stay zero, and without weight decay, which these tables then have none of, such a row keeps its bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from megatron_v2pe.models.vlm import InternVLModel

_NAME = "v2pe_new_rows"
"""Attribute of a table of which some rows learn: the first of them and the one behind the last, on this rank."""


def learn_new_rows(model: InternVLModel, first: int, behind: int) -> None:
    """Have some rows of the vocabulary's tables learn.

    Args:
        model: this rank's stage, before it is wrapped; its other parameters stay as they are.
        first: first of the rows.
        behind: row behind the last of them.
    """
    for table in _tables(model):
        held = table.shape[0]
        begin = held * model.pg_collection.tp.rank()
        low, high = (min(max(row - begin, 0), held) for row in (first, behind))
        table.requires_grad_(True)
        setattr(table, _NAME, (low, high))


def has_new_rows(parameter: Tensor) -> bool:
    """Tell whether a parameter is a table of which some rows learn alone."""
    return hasattr(parameter, _NAME)


def clear_other_rows(model: InternVLModel) -> None:
    """Make the gradients of all other rows zero, in the buffer of a step's gradients."""
    for table in _tables(model):
        if (rows := getattr(table, _NAME, None)) is not None:
            gradient: Tensor = table.main_grad  # type: ignore[attr-defined]
            gradient[: rows[0]].zero_()
            gradient[rows[1] :].zero_()


def _tables(model: InternVLModel) -> Iterator[nn.Parameter]:
    """Yield embedding and head of this stage; where the two are tied on one stage, the embedding alone."""
    language: Any = model.language_model
    if model.pre_process:
        yield language.embedding.word_embeddings.weight
    if model.post_process and language.output_layer.weight is not None:
        yield language.output_layer.weight
