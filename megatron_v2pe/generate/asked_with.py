"""Model and tokenizer of a checkpoint that is asked with adapters, which may bring tokens that it has not."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_v2pe.checkpoint.low_rank.adapter import Adapter
from megatron_v2pe.checkpoint.low_rank.brought_tokens import growth_of
from megatron_v2pe.checkpoint.low_rank.open_adapter import is_adapter
from megatron_v2pe.checkpoint.resolve import FoundCheckpoint
from megatron_v2pe.checkpoint.trained import trained_model
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.models.config import InternVLConfig


def asked_with(
    place: FoundCheckpoint, adapters: Sequence[Adapter], model: InternVLConfig
) -> tuple[InternVLConfig, Tokenizer]:
    """Return model and tokenizer of a checkpoint that is asked with adapters: with the tokens that those bring.

    Args:
        place: the checkpoint.
        adapters: of it; a run that trained an adapter states its tokens itself.
        model: of the checkpoint, with these tokens or without.

    Raises:
        ConfigError: see `Tokenizer.of_model`; or adapters bring different tokens.
        CheckpointError: tokens do not go with the checkpoint's.
    """
    growth = None
    if any(adapter.rows is not None for adapter in adapters) and not is_adapter(place.folder):
        growth = growth_of([adapter.rows for adapter in adapters], place.hf, trained_model(place.folder))
    if growth is not None:
        model = growth.model(model)
    tokenizer = Tokenizer.of_model(place.hf, model.llm.vocab_size, model.template)
    return model, tokenizer if growth is None else tokenizer.with_tokens(growth.added)
