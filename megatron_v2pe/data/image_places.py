"""Where images stand in a conversation whose text does not say: the published layouts for one image and for several.

A single image goes on a line of its own before the first question, as the published chat function puts it. Several get
a line each, `Image-1: <image>`, `Image-2: <image>`, ..., which is how InternVL2's own examples show several images and
what its training data look like. A text that places one image itself places all of them: nothing is added then.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_v2pe.data.tokenize import PLACEHOLDER

REMEDY = f"write {PLACEHOLDER} once for each image, or leave all of them out: the images then stand before the question"
"""What to do where placeholders and images differ in number."""


def image_lines(count: int, before: int = 0) -> str:
    """Return the lines that show images, each ending in a line break.

    Args:
        count: images to be shown.
        before: images the conversation has shown already; the numbers go on behind them.
    """
    if count == 1:
        return f"{PLACEHOLDER}\n"
    return "".join(f"Image-{before + number}: {PLACEHOLDER}\n" for number in range(1, count + 1))


def with_images(turns: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Put images before the first question of a conversation, unless a turn says where one of them belongs.

    Args:
        turns: (role, text).
        count: images there are.
    """
    if count == 0 or any(PLACEHOLDER in text for _, text in turns):
        return list(turns)
    first = next((number for number, (role, _) in enumerate(turns) if role == "human"), 0)
    return [(role, image_lines(count) + text if number == first else text) for number, (role, text) in enumerate(turns)]
