"""Two lists of new tokens held against each other, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_v2pe.foreign.grown_tokenizer import NewToken
from megatron_v2pe.foreign.printable import printable

MOST_SHOWN = 5
"""Tokens that a message names, at most."""


def token_differences(
    before: Sequence[NewToken], after: Sequence[NewToken], one: str = "the checkpoint", other: str = "the file"
) -> Iterator[str]:
    """Yield what two lists of tokens have differently, in words.

    Args:
        before: of a checkpoint or an adapter.
        after: that it is held against.
        one: what the first list is called.
        other: what the second is called.
    """
    had, has = {token.content: token for token in before}, {token.content: token for token in after}
    if gone := [token for name, token in had.items() if name not in has]:
        yield f"{other} lacks {len(gone)} tokens of {one} ({token_names(gone)})"
    if more := [token for name, token in has.items() if name not in had]:
        yield f"{one} lacks {len(more)} tokens of {other} ({token_names(more)})"
    both = [(had[name], has[name]) for name in had if name in has]
    if moved := [(old, new) for old, new in both if old.id != new.id]:
        old, new = moved[0]
        yield f"{len(moved)} tokens have another id, {printable(old.content)[:80]!r} {old.id} there and {new.id} here"
    elif changed := [(old, new) for old, new in both if old != new]:
        yield f"{len(changed)} tokens have other rules or pieces ({token_names([old for old, _ in changed])})"


def token_names(tokens: Sequence[NewToken]) -> str:
    """Return the first tokens by name, and how many more there are."""
    shown = ", ".join(printable(token.content)[:40] for token in tokens[:MOST_SHOWN])
    return shown + (f" and {len(tokens) - MOST_SHOWN} more" if len(tokens) > MOST_SHOWN else "")
