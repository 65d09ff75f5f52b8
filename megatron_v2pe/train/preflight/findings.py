"""What was found of a run before it started: right, not there yet, doubtful, refused, not looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.errors import V2PEError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.train.config import ExperimentConfig

if TYPE_CHECKING:
    from megatron_v2pe.models.lora_plan import LowRankPlan

_NOT_LOOKED_AT = "values of the weights, pixels, other samples, the cards and processes of the run, room on the disk"


@dataclass
class Findings:
    """What the checks before a run have found."""

    config: ExperimentConfig
    """Settings of the run, with the positions of an indexed set filled in."""
    model: InternVLConfig | None = None
    """Model of its checkpoint, where that can be read."""
    adapters: LowRankPlan | None = None
    """Adapters of the run, where it has some."""
    encoder: DocumentEncoder | None = None
    """What makes documents of samples, where there is a tokenizer as well."""
    iteration: int = 0
    """Steps done by the checkpoint the run would go on from."""
    loader_state: dict[str, Any] | None = None
    """State of the loader in that checkpoint."""
    right: list[str] = field(default_factory=list)
    """What was looked at."""
    absent: list[str] = field(default_factory=list)
    """What a recipe names, or what belongs into a folder that is there, and may still come."""
    doubts: list[str] = field(default_factory=list)
    """What a run would do, and a user may not have meant."""
    problems: list[V2PEError | OSError] = field(default_factory=list)
    """What the run would be refused for."""
    unseen: list[str] = field(default_factory=list)
    """What could not be looked at because something else is missing."""

    def lines(self) -> Iterator[str]:
        """Yield all of it as text."""
        yield "looked at:"
        yield from (f"  {line}" for line in self.right)
        if self.absent:
            yield "not there yet:"
            yield from (f"  {line}" for line in self.absent)
        if self.doubts:
            yield "not refused, but worth a look:"
            yield from (f"  {line}" for line in self.doubts)
        if self.problems:
            yield "the run would be refused:"
            for problem in self.problems:
                yield from (f"  {line}" for line in str(problem).splitlines())
        yield f"not looked at: {', '.join([*self.unseen, _NOT_LOOKED_AT])}"

    def attempt(self, work: Callable[[], None]) -> None:
        """Do a part of the work; what it raises is a problem of the run, and the other parts go on."""
        try:
            work()
        except (V2PEError, OSError) as error:
            self.problems.append(error)
