"""Which columns the two published tables have, and which benchmarks of which split make up each: this place only.

Averages name their columns; none is ever read, all are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_v2pe.evaluate.families.milebench.questions import name_of
from megatron_v2pe.evaluate.families.milebench.scorer import GROUPS


@dataclass(frozen=True)
class Column:
    """A number of a table: the unweighted mean of its parts."""

    name: str
    """As published, subscripts after a space."""
    parts: tuple[str, ...]
    """Benchmarks, by name; all must have a score for the column to be whole."""
    stand_in: tuple[str, ...] = ()
    """Benchmarks shown, with a mark, where no part has a score."""


@dataclass(frozen=True)
class Average:
    """A number of a table: the unweighted mean of other columns of it."""

    name: str
    of: tuple[str, ...]
    """Names of its columns; it is given only where all of them are whole."""


@dataclass(frozen=True)
class TableLayout:
    """One of the report's two tables: its title and its columns."""

    name: str
    """Also of its CSV file."""
    title: str
    columns: tuple[Column | Average, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all columns, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def averages(self) -> tuple[Average, ...]:
        """Return the columns that are means of others."""
        return tuple(column for column in self.columns if isinstance(column, Average))


def _needles(kind: str) -> tuple[str, ...]:
    return tuple(f"mmniah_test_{task}_{kind}" for task in ("retrieval", "counting", "reasoning"))


def _sets(group: str) -> tuple[str, ...]:
    return tuple(name_of(dataset) for dataset in GROUPS[group])


_SINGLE = (
    Column("ChartQA", ("chartqa_human", "chartqa_augmented")),
    Column("DocVQA", ("docvqa_val",)),
    Column("AI2D", ("ai2d",)),
    Column("InfoVQA", ("infovqa_val",)),
    Column("SQA", ("scienceqa",)),
    Column("POPE", ("pope",)),
    Column("MMMU val", ("mmmu_val",)),
    # The published script asks the test split; its score is a server's.
    Column("MMBench EN", ("mmbench_test_en",), stand_in=("mmbench_dev_en",)),
    Column("SEED I", ("seed",)),  # the scorer's number is that of the images
)
GENERAL = TableLayout(
    "general",
    "General MLLM benchmarks",
    (*_SINGLE, Average("Avg", tuple(column.name for column in _SINGLE))),
)
LONG_CONTEXT = TableLayout(
    "long_context",
    "Long-context MLLM benchmarks",
    (
        # Published rows that are on MM-NIAH's leaderboard too are those of its test split (14.47 and 84.08 there).
        Column("MM-NIAH/Image", _needles("image")),
        Column("MM-NIAH/Text", _needles("text")),
        Average("MM-NIAH/Avg", ("MM-NIAH/Image", "MM-NIAH/Text")),
        Column("MileBench/T", _sets("T")),
        Column("MileBench/S", _sets("S")),
        Column("MileBench/NI", _sets("NI")),
        Average("MileBench/Avg", ("MileBench/T", "MileBench/S", "MileBench/NI")),
        Column("VideoMME", ("videomme",)),
        Column("MVBench", ("mvbench",)),
    ),
)
LAYOUTS = (GENERAL, LONG_CONTEXT)
