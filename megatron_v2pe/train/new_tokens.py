"""The new tokens of a run: its checkpoint's model and tokenizer with them, and what a run may go on from.

`model.add_tokens` names a file; `data/new_tokens.py` checks it, `checkpoint/growth.py` gives the tables their rows.
"""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.checkpoint.folder import HF_FOLDER
from megatron_v2pe.checkpoint.growth import Growth
from megatron_v2pe.data.new_tokens import read_new_tokens_for
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.grown_tokenizer import read_new_tokens
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.token_differences import MOST_SHOWN, token_differences, token_names
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import Learning


def growth_of_run(add_tokens: str | None, model: InternVLConfig, tokenizer: Tokenizer, template: str) -> Growth | None:
    """Return the tokens that a run adds to its checkpoint; None where it adds none.

    Args:
        add_tokens: `model.add_tokens`.
        model: of the checkpoint the run starts from.
        tokenizer: likewise.
        template: name of the conversation template.

    Raises:
        ConfigError: the file cannot be used; see `data.new_tokens.read_new_tokens_for`.
    """
    if add_tokens is None:
        return None
    growth = Growth(tuple(read_new_tokens_for(Path(add_tokens), tokenizer, template)), model.llm.vocab_size)
    growth.model(model)
    return growth


def with_growth(growth: Growth | None, model: InternVLConfig, tokenizer: Tokenizer) -> tuple[InternVLConfig, Tokenizer]:
    """Return model and tokenizer of a run with the tokens it adds."""
    if growth is None:
        return model, tokenizer
    return growth.model(model), tokenizer.with_tokens(growth.added)


def rows_to_learn(start: Path, growth: Growth | None) -> tuple[int, int]:
    """Return the first of the rows that `model.train_new_tokens` trains, and the one behind the last.

    Args:
        start: `hf/` of the checkpoint the run starts from, or that HF folder.
        growth: of the run; None: the tokens that were added to the checkpoint before count.

    Raises:
        ConfigError: no token was added, or ids of other tokens lie between those that were.
        CheckpointError: the record of new tokens is damaged.
    """
    tokens = growth.tokens if growth is not None else read_new_tokens(start, CheckpointError)
    if not tokens:
        raise ConfigError(
            f"model.train_new_tokens: no token was added to {printable(start)}, and model.add_tokens names none; name "
            "a file, or start from a checkpoint that was given tokens (tools/inspect_checkpoint.py shows them)"
        )
    first, last = tokens[0].id, tokens[-1].id
    if last - first + 1 != len(tokens):
        raise ConfigError(
            f"model.train_new_tokens: {len(tokens)} tokens were added to {printable(start)}, with ids {first} to "
            f"{last}: others lie between, which are not to learn; add the tokens of this run alone (model.add_tokens)"
        )
    return first, last + 1


def rows_of_checkpoints(learning: Learning, adapters: bool, start: Path, growth: Growth | None) -> range | None:
    """Return the rows of the vocabulary's tables that a run's checkpoints hold, where they hold no whole tables.

    Args:
        learning: what of the model learns.
        adapters: whether the run trains adapters, so that its checkpoints hold what learns alone.
        start: see `rows_to_learn`.
        growth: of the run.

    Returns:
        The rows of its new tokens, whether they learn or not, for its base has none; without new tokens those that
        learn; None: there are none, or the tables are stored whole.

    Raises:
        ConfigError: see `rows_to_learn`.
        CheckpointError: see `rows_to_learn`.
    """
    if not adapters or learning.llm:
        return None
    if growth is None and not learning.tables:
        return None
    return range(*rows_to_learn(start, growth))


def check_goes_on(start: Path, growth: Growth | None, resumed: Path, add_tokens: str | None) -> None:
    """Check that a run goes on with the tokens that it has had.

    Args:
        start: `hf/` of the checkpoint the run starts from, or that HF folder.
        growth: of the run.
        resumed: the training checkpoint it goes on from.
        add_tokens: `model.add_tokens`, for the error.

    Raises:
        ConfigError: the checkpoint has other new tokens than the run would give it; names the differences.
        CheckpointError: a record of new tokens is damaged.
    """
    had = read_new_tokens(resumed / HF_FOLDER, CheckpointError)
    now = (*read_new_tokens(start, CheckpointError), *(growth.tokens if growth is not None else ()))
    if had == now:
        return
    where, said = printable(resumed), "; ".join(token_differences(had, now))
    if add_tokens is None:
        lost = [token for token in had if token not in now]
        raise ConfigError(
            f"{where} has {len(lost)} tokens that the start of this run has not: {token_names(lost)}; go on with the "
            "model.add_tokens that the run was started with (its config.yaml says which), or start a further run from "
            f"this checkpoint: --model.model-name-or-path {where} and another checkpoint.save"
        )
    raise ConfigError(
        f"model.add_tokens {printable(add_tokens)}: has changed since the run began, which goes on from {where}: "
        f"{said}. Put the file back as it was; to add more tokens, start a further run "
        "from that checkpoint, with another checkpoint.save and a file of the further tokens"
    )


def pieces_in_words(growth: Growth) -> str:
    """Return how many pieces the tokens replace, the first of them by name."""
    shown = [f"{printable(token.content)[:40]} {len(token.pieces)}" for token in growth.tokens[:MOST_SHOWN]]
    more = f" and {len(growth.tokens) - MOST_SHOWN} more" if len(growth.tokens) > MOST_SHOWN else ""
    counts = sorted(len(token.pieces) for token in growth.tokens)
    least = "" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}, "
    return f"pieces each replaces: {', '.join(shown)}{more}; {least}{sum(counts)} in all"
