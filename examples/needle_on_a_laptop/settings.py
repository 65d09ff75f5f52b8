"""The settings of the experiment: sizes, seeds, layout; and the rows of its table."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from start_model import TRAINED_LENGTH
from task import TOKENS_PER_TILE

SIDE_BY_SIDE = "dp=2, then side by side"
"""Two processes share the first stage; in the second the two models are trained at the same time, a process each."""
LAYOUTS = {
    SIDE_BY_SIDE: [],
    "dp=2": [],
    "tp=2": ["--parallel.tensor-model-parallel-size", "2", "--parallel.sequence-parallel", "true"],
    "cp=2": ["--parallel.context-parallel-size", "2"],
    "pp=2": ["--parallel.pipeline-model-parallel-size", "2"],
}
"""Layout of training on two processes -> arguments of tools/train.py."""
STRIDES = tuple(str(Fraction(TOKENS_PER_TILE, 2**power)) for power in range(9))
"""Positions a tile may span: the published choice 1, 1/2, ..., 1/256 of a position for an image token."""
DECIDING = 8
"""The finding is judged at this many times the trained length."""


@dataclass(frozen=True)
class Settings:
    """An experiment."""

    seeds: int = 1
    model: str = "internlm2"
    """Family of the language model and the tower, of `SMALL_FAMILIES`."""
    parallel: str = SIDE_BY_SIDE
    longest: int = DECIDING
    """Times the trained length."""
    vision_steps: int = 800
    short_part: int = 250
    """Steps of the first stage after which it is looked whether binding has been learned."""
    short_parts: int = 6
    """It is given up after so many."""
    long_steps: int = 400
    short_documents: int = 9000
    long_documents: int = 12800
    questions: int = 128
    """For each length, haystack and row."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the prompts asked about."""
        return tuple(TRAINED_LENGTH * 2**power for power in range(self.longest.bit_length()))


SMOKE = Settings(
    longest=2,
    vision_steps=20,
    short_part=2,
    short_parts=2,
    long_steps=2,
    short_documents=256,
    long_documents=128,
    questions=6,
)
"""Learns nothing; shows that every part fits the next."""


@dataclass(frozen=True)
class Row:
    """A line of the table: a model, and the positions it is read with."""

    trained: str
    """`default` or `v2pe`."""
    advance: Fraction = Fraction(1)
    """Positions an image token advances by."""
    scaling: str | None = None
    """Rotary scaling without training: `dynamic` (NTK) or `linear`."""
    words: bool = False
    """Whether it is also read in a haystack of words."""

    @property
    def label(self) -> str:
        """Return what the table says of the model."""
        return "ordinary" if self.trained == "default" else "V2PE"

    @property
    def read_at(self) -> str:
        """Return what the table says of how it is read."""
        if self.scaling is not None:
            return f"{self.advance}, {SCALINGS[self.scaling]}, untrained"
        return f"{self.advance}, untrained" if self.trained == "default" and self.advance != 1 else str(self.advance)

    @property
    def checkpoint(self) -> str:
        """Return the name of the exported checkpoint it asks."""
        if self.scaling is not None:
            return f"{self.trained}_{self.scaling}"
        return "default_read_as_v2pe" if self.trained == "default" and self.advance != 1 else self.trained

    @property
    def stride(self) -> str | None:
        """Return positions a tile spans; None where the checkpoint has none."""
        return str(self.advance * TOKENS_PER_TILE) if "v2pe" in self.checkpoint else None

    def answers(self, length: int) -> str:
        """Return the folder of its answers at a length, as `tools/evaluate.py` names it."""
        if self.scaling == "linear":  # a factor for each length, and 1 is the model as it is
            times = length // TRAINED_LENGTH
            return f"{self.checkpoint}/{times}" if times > 1 else "default"
        return self.checkpoint if self.stride is None else f"{self.checkpoint}/stride_{self.stride.replace('/', '-')}"


SCALINGS = {"dynamic": "dynamic NTK", "linear": "linear interpolation"}
"""Rotary scalings -> as the table calls them."""
ORDINARY, V2PE = Row("default", words=True), Row("v2pe", Fraction(1, 16), words=True)
"""The two rows the finding is judged by."""
ROWS = (
    ORDINARY,
    *(Row("default", Fraction(1, part)) for part in (4, 16, 256)),
    *(Row("default", scaling=scaling) for scaling in SCALINGS),
    *(V2PE if part == 16 else Row("v2pe", Fraction(1, part)) for part in (1, 4, 16, 64, 256)),
)
"""Rows of the table, in order."""
RIGHT, WRONG = 0.9, 0.5
"""At `DECIDING` times the trained length V2PE must read more, ordinary positions less."""
