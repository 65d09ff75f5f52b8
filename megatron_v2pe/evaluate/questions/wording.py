"""Sentences and forms that several benchmarks ask with, to the letter as the published evaluation does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_v2pe.evaluate.benchmark import IMAGE

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"


def with_image(text: str) -> str:
    """Put the image first if the text does not place it, as the published chat function does."""
    return text if IMAGE in text else f"{IMAGE}\n{text}"


def lettered(options: Sequence[object]) -> dict[str, str]:
    """Return options by letter: A, B, C and so on, AA after Z."""
    return {_letter(number): str(option) for number, option in enumerate(options)}


def option_lines(options: Mapping[str, str]) -> str:
    """Return `A. option` lines."""
    return "\n".join(f"{letter}. {option}" for letter, option in options.items())


def _letter(number: int) -> str:
    first, last = divmod(number, 26)
    return (chr(ord("A") + first - 1) if first else "") + chr(ord("A") + last)
