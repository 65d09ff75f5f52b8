"""The tokens that end an answer, read from the checkpoint and assumed nowhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields, Range
from megatron_v2pe.foreign.text import read_json_object

GENERATION = "generation_config.json"
_Id = Annotated[int, Range(0)]


def end_tokens(folder: Path, tokenizer: Tokenizer, template: str, rows: int) -> frozenset[int]:
    """Return the ids that end an answer: of the template's end, of the text, and those the checkpoint names itself.

    Args:
        folder: the checkpoint's HF folder; its `generation_config.json` may name one id or a list, or be absent.
        tokenizer: the checkpoint's.
        template: name of its conversation template.
        rows: of the model's vocabulary; an id beyond them is left out, for no answer can hold it.

    Raises:
        ConfigError: the tokenizer lacks the template's end, or `eos_token_id` is neither a number nor a list of them.
    """
    ends = {tokenizer.token_id(get_template(template).end)}
    if tokenizer.eos_id is not None:
        ends.add(tokenizer.eos_id)
    path = folder / GENERATION
    if os.path.lexists(path):
        fields = Fields(read_json_object(path, ConfigError), printable(path), ConfigError)
        found = fields.get("eos_token_id", _Id | list[_Id], ())
        ends.update([found] if isinstance(found, int) else found)
    return frozenset(number for number in ends if number < rows)
