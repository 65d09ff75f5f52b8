"""A conversation in the terminal: questions and commands in, answers out as they come.

Only the first rank reads and writes; what it reads is sent to every rank, and all of them answer. An image belongs to
the question it came with, however late in the conversation that is: its place is written there
(`data.tokenize`), and no earlier turn is changed. A question that cannot be answered is reported and forgotten with its
images, so that the
conversation goes on as if it had not been asked. So it is, but for its images, where Ctrl-C stops an answer: on one
process, for several are interrupted in different places.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch.distributed as dist

from megatron_v2pe.data.image_files import image_size
from megatron_v2pe.data.image_plan import TilingOptions
from megatron_v2pe.data.tokenize import PLACEHOLDER, REMEDY, image_lines
from megatron_v2pe.device.rank_errors import raise_on_all_ranks
from megatron_v2pe.errors import DataError, V2PEError
from megatron_v2pe.generate.generation import GenerationOptions
from megatron_v2pe.generate.pretrained import ChatQuestion, Pretrained
from megatron_v2pe.parallel.topology import model_copy_group

_ENDS = ("/exit", "/quit")
HELP = "/image PATH [PATH ...] shows images with the next question, /reset starts anew, /exit ends"
_CHANGE = "; /adapter NAME has another adapter answer, /adapter none the checkpoint alone"
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
        say(self._help())
        paths, self.waiting = self.waiting, []
        self._show(paths, say)
        while (line := _read_for_all_ranks(read, first)) is not None and line not in _ENDS:
            try:
                self._take(line, say)
            except V2PEError as error:  # the same on every rank
                say(f"error: {error}\n")

    def _take(self, line: str, say: Write) -> None:
        command, _, rest = line.partition(" ")
        if command == "/image":
            if not rest.strip():
                raise DataError("/image: name a file, /image PATH")
            self._show(_paths(rest.strip()), say)
        elif command == "/reset":
            self.turns, self.images, self.waiting = [], [], []
            say("a new conversation\n")
        elif command == "/adapter" and self.pretrained.adapters is not None:
            self.pretrained.choose(rest.strip())
            say(f"{rest.strip()} answers from now on\n")
        elif command.startswith("/"):
            say(self._help())
        elif line:
            self._ask(line, say)

    def _help(self) -> str:
        return f"{HELP}{'' if self.pretrained.adapters is None else _CHANGE}\n"

    def _show(self, paths: Sequence[str], say: Write) -> None:
        """Keep images for the next question, all of them or none."""
        sizes = raise_on_all_ranks(
            lambda: [image_size(path, self.tiling.operations) for path in paths], model_copy_group()
        )
        self.waiting += paths
        for path, (width, height) in zip(paths, sizes, strict=True):
            say(f"{path}: {width} x {height}\n")

    def _ask(self, text: str, say: Write) -> None:
        turns, images = [*self.turns, ("human", self._with_places(text))], self.images + self.waiting
        name = f"turn {len(turns) // 2}"
        question = ChatQuestion(turns, images, name)
        try:
            answer = self.pretrained.ask([question], self.tiling, self.options, lambda _, piece: say(piece))[0]
        except V2PEError as error:  # the same on every rank
            dropped = "; so are its images, /image shows them again" if self.waiting else ""
            say(f"error: {error}\nThe question is forgotten{dropped}; /reset starts anew.\n")
            self.waiting = []
            return
        except KeyboardInterrupt:
            if dist.get_world_size() > 1:
                raise
            say("\nThe answer is stopped and its question forgotten; its images wait for the next.\n")
            return
        say("\n")
        said = answer.text.replace(PLACEHOLDER, "").strip()  # in a later question it would stand for an image
        self.turns, self.images, self.waiting = [*turns, ("gpt", said)], images, []

    def _with_places(self, text: str) -> str:
        """Return a question with the places of the images that are shown with it."""
        places, waiting = text.count(PLACEHOLDER), len(self.waiting)
        if places == waiting or not waiting:
            return text
        if places:
            raise DataError(f"{places} {PLACEHOLDER} in the question, but {waiting} images wait to be shown: {REMEDY}")
        return image_lines(waiting, len(self.images)) + text


def _paths(words: str) -> list[str]:
    """Return the files a line names: one, whatever is in its name, or several, quoted where they hold spaces."""
    if os.path.exists(path := os.path.expanduser(words)):
        return [path]
    try:
        return [os.path.expanduser(word) for word in shlex.split(words)]
    except ValueError:  # a quote without its end
        return [words]


def _read_for_all_ranks(read: Read, first: bool) -> str | None:
    """Return on every rank what the first rank reads."""
    box = [read() if first else None]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return None if box[0] is None else box[0].strip()
