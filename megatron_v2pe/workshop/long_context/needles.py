"""Needles: what is hidden in a haystack, the question about it, and its answer.

The tasks are those of the published Long-MR mixture, which extends MM-NIAH (arXiv 2406.07230). Needles in images are in
`image_needles`, those in text in `text_needles`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from megatron_v2pe.workshop.long_context.made_images import ImagePart, Shown
from megatron_v2pe.workshop.long_context.pipeline import PLACEHOLDER

TEXT_TASKS = ("text_retrieval", "text_retrieval_fake", "text_counting", "text_reasoning")
IMAGE_TASKS = ("image_retrieval", "image_counting", "image_reasoning_jigsaw", "image_reasoning_multiview")
TASKS = (*TEXT_TASKS, *IMAGE_TASKS)
"""Tasks by their names in the published mixture."""

WORD_OR_PHRASE = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
"""What MM-NIAH's evaluation adds to questions."""


@dataclass(frozen=True)
class Needles:
    """The needles of one sample, its question and its answer."""

    task: str
    question: str
    """May show images: `question_images`, one for each placeholder."""
    answer: str | int | list[int]
    """Text; number of the right choice, from 0; or numbers in the order of the document."""
    statements: tuple[str, ...] = ()
    """Sentences to hide, in the order in which they are to stand in the document."""
    fakes: tuple[str, ...] = ()
    """Sentences of the same form about something else, to hide as well."""
    inserted: tuple[Shown, ...] = ()
    """Images to stand in the document by themselves, in order."""
    pasted: ImagePart | None = None
    """A picture to be pasted into images of the haystack."""
    copies: tuple[int, ...] = ()
    """How often, for each image it is pasted into, in order."""
    question_images: tuple[Shown, ...] = ()
    choices: tuple[str, ...] = ()
    """Choices in words."""
    choice_images: tuple[Shown, ...] = ()
    """Choices as images."""
    recorded: tuple[str, ...] = ()
    """What `meta.needles` names: sentences, or paths of images."""
    sources: tuple[str, ...] = ()
    """Files pictures come from; the haystack must not show them by themselves."""
    unique: tuple[str, ...] = ()
    """Words the haystack must not hold by itself, upper and lower case alike."""

    @property
    def places(self) -> int:
        """Needles that have a depth."""
        return len(self.statements) + len(self.inserted) + len(self.copies)

    def asking(self) -> str:
        """Return question, choices and the sentence that asks for their form, as MM-NIAH's evaluation joins them."""
        choices = self.choices or (PLACEHOLDER,) * len(self.choice_images)
        lines = [self.question, *(f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices))]
        if choices:
            lines.append(LETTER)
        elif not isinstance(self.answer, list):
            lines.append(WORD_OR_PHRASE)
        return "\n".join(lines)

    def answering(self) -> str:
        """Return the answer as a model is to write it: text, a letter, or a JSON list."""
        if isinstance(self.answer, int):
            return chr(ord("A") + self.answer)
        return self.answer if isinstance(self.answer, str) else json.dumps(self.answer)
