"""New tokens for a checkpoint: a user's file, checked against its tokenizer and conversation template.

Ids follow those of the tokenizer. A token is cut out of texts before anything else, as every token of its own; so one
that holds a mark of the template, or stands in what the template writes around turns, would change every conversation,
and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_v2pe.data.conversation import Template, get_template
from megatron_v2pe.data.encode import VIDEO_PLACEHOLDER
from megatron_v2pe.data.special_tokens import NEEDED
from megatron_v2pe.data.tokenize import PLACEHOLDER
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.grown_tokenizer import NewToken
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.token_list import ListedToken, read_token_list
from megatron_v2pe.foreign.tokenizer_files import LARGEST_ID


def read_new_tokens_for(path: Path, tokenizer: Tokenizer, template: str) -> list[NewToken]:
    """Return the tokens that a file adds to a tokenizer, with their ids and the pieces each of them replaces.

    Args:
        path: see `foreign.token_list`.
        tokenizer: of the checkpoint, as it is.
        template: name of the conversation template.

    Raises:
        ConfigError: see `read_token_list`; a token that is one already, that holds a mark of the template or a
            placeholder of media, or that stands in what the template writes around turns; rules about blanks that this
            kind of tokenizer has not. Names the line or the entry, and what to do.
    """
    listed = read_token_list(path, ConfigError)
    known = [(token, where, number) for token, where in listed if (number := _known(token, tokenizer)) is not None]
    if known:
        token, where, number = known[0]
        shown, others = printable(token.content)[:80], len(known) - 1
        if len(known) == len(listed):
            mend = (
                "as all tokens of the file are: the checkpoint has been given them already; leave model.add_tokens out"
            )
        else:
            mend = f"{f'and so are {others} more; ' if others else ''}remove it from the file"
        raise ConfigError(f"{where}: {shown!r} is token {number} of the checkpoint's tokenizer already, {mend}")
    marks = _marks(tokenizer, get_template(template))
    first = len(tokenizer)
    tokens: list[NewToken] = []
    for place, (token, where) in enumerate(listed):
        if held := next((mark for mark in marks if mark in token.content), None):
            raise ConfigError(
                f"{where}: token {printable(token.content)[:80]!r} holds {held}, which prompts of template "
                f"{template!r} are made of and the new token would swallow; choose another text"
            )
        pieces = tuple(tokenizer.encode(token.content if token.mean_of is None else token.mean_of))
        rules = (token.special, token.lstrip, token.rstrip, token.single_word, token.normalized)
        tokens.append(NewToken(token.content, first + place, pieces, *rules))
    if first + len(tokens) > LARGEST_ID:
        raise ConfigError(f"{printable(path)}: {len(tokens)} tokens behind {first} are more ids than there are")
    grown = tokenizer.with_tokens([token.added for token in tokens])
    _check_template(grown, tokenizer, get_template(template), {t.content: where for t, where in listed})
    return tokens


def _known(token: ListedToken, tokenizer: Tokenizer) -> int | None:
    """Return the id of a text that is one token, or one piece, already."""
    known = tokenizer.known_id(token.content)
    ids = tokenizer.encode(token.content)
    return known if known is not None else ids[0] if len(ids) == 1 else None


def _marks(tokenizer: Tokenizer, template: Template) -> Sequence[str]:
    """Return the texts that no new token may hold: what prompts are made of."""
    ends = [name for name, number in tokenizer.special.items() if number in (tokenizer.bos_id, tokenizer.eos_id)]
    return list(dict.fromkeys([*template.marks, *NEEDED, PLACEHOLDER, VIDEO_PLACEHOLDER, *ends]))


def _check_template(grown: Tokenizer, before: Tokenizer, template: Template, places: dict[str, str]) -> None:
    """Check that what a template writes around turns has the ids that it had."""
    around = template.system.replace(template.system_prompt, "", 1) if template.system_prompt else template.system
    for text in (around, template.user, template.assistant, template.end + template.separator):
        if (ids := grown.encode(text)) != before.encode(text):
            token = next(name for name in places if grown.special[name] in ids)
            raise ConfigError(
                f"{places[token]}: token {printable(token)[:80]!r} stands in '{printable(text)[:80]}', which template "
                f"{template.name!r} writes around turns: every prompt would have other tokens than the model has "
                "learned; choose another text"
            )
