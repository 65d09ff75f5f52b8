"""A conversation in the terminal: questions and commands in, answers out as they come.

Only the first rank reads and writes; what it reads is told to every rank, and all of them answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch.distributed as dist

from megatron_v2pe.data.image_transform import image_size
from megatron_v2pe.data.pictures import TilingOptions
from megatron_v2pe.data.text import PLACEHOLDER
from megatron_v2pe.errors import V2PEError
from megatron_v2pe.generate.generation import GenerationOptions
from megatron_v2pe.generate.pretrained import Pretrained, Question
from megatron_v2pe.generate.stages import agreed
from megatron_v2pe.parallel.topology import model_copy_group

HELP = "/image PATH shows an image with the next question, /reset starts anew, /exit ends"
Read = Callable[[], str | None]
"""Returns a line, or None at the end."""
Write = Callable[[str], None]


@dataclass
class Chat:
    """One conversation."""

    pretrained: Pretrained
    tiling: TilingOptions
    options: GenerationOptions
    turns: list[tuple[str, str]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Images to be shown with the next question."""

    def run(self, read: Read, write: Write) -> None:
        """Answer until `/exit` or the end of the input; both functions are called on the first rank only."""
        first = dist.get_rank() == 0
        say: Write = write if first else lambda _: None
        say(f"{HELP}\n")
        while (line := _told(read, first)) is not None and line != "/exit":
            try:
                self._take(line, say)
            except V2PEError as error:  # the same on every rank
                say(f"error: {error}\n")

    def _take(self, line: str, say: Write) -> None:
        command, _, rest = line.partition(" ")
        if command == "/image":
            path = rest.strip()
            width, height = agreed(lambda: image_size(path), model_copy_group())
            self.waiting.append(path)
            say(f"{path}: {width} x {height}\n")
        elif command == "/reset":
            self.turns, self.images, self.waiting = [], [], []
        elif command.startswith("/"):
            say(f"{HELP}\n")
        elif line:
            self._ask(line, say)

    def _ask(self, text: str, say: Write) -> None:
        shown = "".join(f"{PLACEHOLDER}\n" for _ in self.waiting) + text
        turns, images = [*self.turns, ("human", shown)], self.images + self.waiting
        name = f"turn {len(turns) // 2}"
        question = Question(turns, images, name)
        answer = self.pretrained.ask([question], self.tiling, self.options, lambda _, piece: say(piece))[0]
        say("\n")
        self.turns, self.images, self.waiting = [*turns, ("gpt", answer.text.strip())], images, []


def _told(read: Read, first: bool) -> str | None:
    """What the first rank reads, on every rank."""
    box = [read() if first else None]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return None if box[0] is None else box[0].strip()
