"""The rows of the two published tables, digit by digit, and numbers published elsewhere that they can be held against.

Source: README of the released V2PE code (section "Evaluation results of our released model"). `*` stands after what is
printed in bold. Averages are as printed; see `audit` for which of them follow from their columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from megatron_v2pe.evaluate.report.columns import GENERAL, LONG_CONTEXT, TableLayout

SOURCE = "README of the V2PE repository, released model"
DEFAULT_ROW = "InternVL2-V2PE-32K"


@dataclass(frozen=True)
class PublishedRow:
    """A model's row of a table."""

    model: str
    size: str
    """Parameters as printed: `2.0B`, `-`."""
    printed: dict[str, Decimal | None]
    """By column, averages among them; None: a dash."""
    bold: frozenset[str] = field(default_factory=frozenset)
    """Columns printed in bold."""


_GENERAL_ROWS = """
InternVL2-2B       | 2.0B | 71.7  | 86.9  | 74.1  | 58.9  | 94.1  | 85.2  | 36.3  | 73.4  | 70.9  | 72.4
DeepSeek-VL-1.3B   | 2.0B | 47.4  | -     | 51.5  | -     | 68.4  | 85.9  | 33.8  | 66.4  | 66.0  | -
Qwen2-VL-2B        | 2.0B | 73.5  | 90.1  | 74.7  | 65.5  | -     | -     | 41.1  | 74.9  | -     | -
Aquila-VL-2B       | 2.2B | 32.0  | 85.0  | 75.1  | 58.3  | 95.1  | 83.1  | 46.9  | 79.0  | 73.9  | 69.8
MiniCPM-V-2        | 2.8B | 55.6  | 71.9  | 62.9  | -     | 80.7  | 86.3  | 38.2  | 64.1  | 67.1  | -
Vintern-3B-beta    | 3.7B | 68.3  | -     | 69.1  | -     | 75.0  | 87.4  | 46.7  | 70.6  | 70.0  | -
Llama 3.2 11B      | 11B  | 83.4  | 88.4  | 91.1  | -     | -     | -     | 50.7  | 68.0  | -     | -
Qwen2-VL-72B       | 73B  | 88.3  | 96.5  | 88.1  | 84.5  | 91.2  | 87.2  | 64.5  | 86.9  | 77.9  | 85.0
GPT-4o             | -    | 85.7  | 92.8  | 84.7  | -     | 90.1  | 97.2  | 69.1  | 82.1  | 76.7  | -
InternVL2-V2PE-32K | 2.0B | 76.4* | 83.9* | 73.2* | 55.9* | 94.9* | 88.8* | 36.6* | 73.5* | 71.2* | 72.5*
"""
_LONG_ROWS = """
InternVL2-2B       | 2.0B | 23.0  | 18.9  | 21.0  | 58.2  | 54.5  | 37.0  | 49.9  | -     | -
Phi-3-Vision       | 2.7B | -     | -     | -     | 46.9  | 50.0  | -     | -     | -     | -
OmChat             | 3.9B | -     | -     | -     | 51.4  | 52.0  | -     | -     | 45.9  | 50.2
LongLLaVA 9B       | 9B   | -     | -     | -     | 47.3  | 46.8  | -     | -     | 43.7  | 49.1
LongLLaVA 13B      | 13B  | -     | -     | -     | 52.7  | 52.1  | -     | -     | 51.6  | 54.6
VILA               | 13B  | 14.5  | 40.5  | 27.5  | -     | -     | -     | -     | -     | -
Gemini-1.5         | -    | 28.5  | 82.1  | 55.2  | 50.2  | 58.3  | 97.9  | 68.8* | 69.6* | -
GPT-4V             | -    | -     | 84.1  | -     | 45.6  | 58.9  | 99.4* | 68.0  | 59.9  | 43.5
GPT-4o             | -    | -     | -     | -     | 56.2  | 63.5* | -     | -     | 64.7  | -
Claude3-Opus       | -    | -     | -     | -     | 37.4  | 48.1  | 85.3  | 56.9  | 59.7  | -
InternVL2-V2PE-32K | 2.0B | 78.1* | 85.7* | 81.8* | 65.5* | 56.4  | 97.2  | 72.5  | 50.7  | 65.6*
"""

LEADERBOARD: dict[str, tuple[Decimal | None, Decimal | None]] = {
    "VILA": (Decimal("14.47"), Decimal("16.91")),
    "Gemini-1.5": (Decimal("28.35"), Decimal("81.53")),
    "GPT-4V": (None, Decimal("84.08")),
}
"""Model -> image and text score on MM-NIAH's own leaderboard: mean over the three tasks of the test split and their
eleven context bins, computed from its `scores_test.json` (VILA1.0-13b-llava, Gemini-1.5, GPT-4V)."""

PARAMETERS = {"InternVL2-2B": 2_205_754_368, "InternVL2-V2PE-32K": 2_205_754_368}
"""Model -> parameters of its architecture, counted over the tensors of InternVL2-2B."""


def _rows(layout: TableLayout, text: str) -> tuple[PublishedRow, ...]:
    rows: list[PublishedRow] = []
    for line in text.strip().splitlines():
        model, size, *cells = (cell.strip() for cell in line.split("|"))
        named = dict(zip(layout.names, cells, strict=True))
        rows.append(
            PublishedRow(
                model,
                size,
                {name: None if cell == "-" else Decimal(cell.rstrip("*")) for name, cell in named.items()},
                frozenset(name for name, cell in named.items() if cell.endswith("*")),
            )
        )
    return tuple(rows)


PUBLISHED: dict[str, tuple[PublishedRow, ...]] = {
    GENERAL.name: _rows(GENERAL, _GENERAL_ROWS),
    LONG_CONTEXT.name: _rows(LONG_CONTEXT, _LONG_ROWS),
}
"""Name of a table -> its rows in the published order (the two sizes of LongLLaVA named apart)."""


def recomputed(layout: TableLayout, row: PublishedRow) -> dict[str, Decimal | None]:
    """Return the averages of a row computed from its printed columns; None where a column is a dash."""
    means: dict[str, Decimal | None] = {}
    for average in layout.averages:
        cells = [value for name in average.of if (value := row.printed[name]) is not None]
        means[average.name] = sum(cells, Decimal(0)) / len(cells) if len(cells) == len(average.of) else None
    return means
