"""What a run's page says of its data: the mix drawn and asked for, lengths, what was left out, some packs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from megatron_v2pe.base.pages.blocks import (
    Cards,
    FigureBlock,
    InlinePicture,
    PageCard,
    Passage,
    ReportBlock,
    Section,
    Table,
    text_line,
)
from megatron_v2pe.base.pages.charts import Bars, Chart
from megatron_v2pe.train.page.bins import length_range, tile_range
from megatron_v2pe.train.page.curves import several
from megatron_v2pe.train.page.record_file import PACKS
from megatron_v2pe.train.page.run_files import RunFiles

_MOST_SETS = 24
_MOST_EXAMPLES = 40
_LARGEST_PICTURE = 1 << 20


def mix_bars(run: RunFiles) -> Bars | None:
    """Return the shares of the data sets among the samples, asked for and drawn; None where none are known."""
    rows = _mix(run)
    if not rows:
        return None
    kept = sorted(rows, key=lambda row: -row[2])[:_MOST_SETS]
    groups = (
        ("asked for", tuple(100 * asked for _, asked, _, _ in kept)),
        ("drawn", tuple(100 * drawn for _, _, drawn, _ in kept)),
    )
    names = tuple(name for name, *_ in kept)
    bars = Bars("Data sets: samples asked for and drawn", names, groups, "data set", "percent of samples")
    return None if bars.is_empty else bars


def length_bars(run: RunFiles) -> Bars | None:
    """Return how many documents have which length."""
    return _histogram(run, "lengths", length_range, "Documents by tokens", "tokens")


def tile_bars(run: RunFiles) -> Bars | None:
    """Return how many documents have how many tiles."""
    return _histogram(run, "tiles", tile_range, "Documents by tiles", "tiles")


def fill_chart(run: RunFiles) -> Chart | None:
    """Return the tokens of a pack over the run, beside the most it may hold."""
    packs = dict(run.points("packs"))
    mean = tuple((step, value / packs[step]) for step, value in run.points("tokens") if packs.get(step))
    most = run.setting("data", "max_packed_tokens")
    limits = ((float(most), "most a pack holds"),) if most else ()
    chart = Chart("Tokens of a pack, mean of each step", several({"tokens": mean}), y_label="tokens", limits=limits)
    return None if chart.is_empty else chart


def data_section(run: RunFiles) -> Section:
    """Return the mix, the lengths, and the samples that were left out."""
    section = Section("Data")
    rows = _mix(run)
    figures: list[ReportBlock] = []
    if (bars := mix_bars(run)) is not None:
        header = ("data set", "asked for", "drawn", "samples", "tokens", "tiles", "learned tokens")
        lines = []
        for name, asked, drawn, counts in rows:
            whole = [f"{int(counts.get(key, 0)):,}" for key in ("samples", "tokens", "tiles", "supervised")]
            lines.append(text_line(name, f"{asked:.1%}", f"{drawn:.1%}", *whole))
        figures.append(FigureBlock(bars, Table(header, tuple(lines))))
    for bars in (length_bars(run), tile_bars(run)):
        if bars is not None:
            ((_, values),) = bars.groups
            counts = tuple(text_line(kind, f"{value:,.0f}") for kind, value in zip(bars.kinds, values, strict=True))
            figures.append(FigureBlock(bars, Table((bars.x_label, "documents"), counts, left=0)))
    if (chart := fill_chart(run)) is not None:
        figures.append(FigureBlock(chart))
    section.blocks += figures
    section.blocks += _left_out(run)
    return section


def _left_out(run: RunFiles) -> list[ReportBlock]:
    record = run.record
    if not record.drawn:
        return ["This run has no record of its data: it was trained by an earlier version, or with logging.no-page."]
    if not record.skipped:
        return ["No sample was left out."]
    causes = sorted(record.skipped.items(), key=lambda one: -one[1])
    table = Table(
        ("samples left out because", "number"), tuple(text_line(name, f"{count:,}") for name, count in causes)
    )
    blocks: list[ReportBlock] = [table]
    if record.examples:
        rows = [text_line(str(one["sample"]), str(one["error"])) for one in record.examples[:_MOST_EXAMPLES]]
        blocks.append(Table(("some of them", "what is wrong"), tuple(rows), left=2))
    return blocks


def packs_section(run: RunFiles) -> Section | None:
    """Return some packs as text and pictures; None where none are kept."""
    if not run.record.packs:
        return None
    section = Section("Packs as the model gets them")
    section.blocks.append(
        "What the model learns to write is marked. Pictures are the first tiles of a document, made small."
    )
    for pack in run.record.packs:
        of_all = f"{len(pack['documents'])} of {pack['all_documents']} documents"
        size = f"{pack['tokens']:,} tokens, {pack['tiles']:,} tiles"
        section.blocks.append(f"Step {pack['step']:,}, first pack: {size}, {of_all}.")
        section.blocks.append(Cards(tuple(_document(run, document) for document in pack["documents"])))
    section.folded = True
    return section


def _document(run: RunFiles, document: dict[str, Any]) -> PageCard:
    head = f"{document['dataset']}, line {document['line']}"
    told = f"{document['tokens']:,} tokens, {document['learned']:,} learned, {document['tiles']:,} tiles"
    blocks: list[str | Passage | InlinePicture] = [told]
    name = str(document.get("picture") or "")
    path = run.logs / PACKS / name
    if name and "/" not in name and path.is_file() and path.stat().st_size < _LARGEST_PICTURE:
        caption = f"Tiles of {document['dataset']}, line {document['line']}"
        blocks.append(InlinePicture(path.read_bytes(), "jpeg", caption))
    pieces = [(str(part["text"]), _style(part)) for part in document["parts"]]
    blocks.append(Passage(tuple(pieces)))
    return PageCard(head, tuple(blocks))


def _style(part: dict[str, Any]) -> Literal["", "learned", "note"]:
    if part.get("note"):
        return "note"
    return "learned" if part.get("learned") else ""


def _mix(run: RunFiles) -> list[tuple[str, float, float, dict[str, float]]]:
    """Return name, share asked for, share drawn and counts of each data set."""
    sets: dict[str, dict[str, float]] = run.record.drawn.get("sets", {})
    asked, drawn = run.record.asked, sum(row.get("samples", 0) for row in sets.values())
    whole = sum(asked.values())
    return [
        (
            name,
            asked.get(name, 0) / whole if whole else 0.0,
            row.get("samples", 0) / drawn if drawn else 0.0,
            row,
        )
        for name, row in sets.items()
    ]


def _histogram(
    run: RunFiles, what: str, range_of: Callable[[int], tuple[int, int]], title: str, unit: str
) -> Bars | None:
    counts: list[int] = run.record.drawn.get(what, [])
    there = [number for number, count in enumerate(counts) if count]
    if not there:
        return None
    kinds, values = [], []
    for number in range(there[0], there[-1] + 1):
        first, last = range_of(number)
        if last >= first:
            kinds.append(f"{first:,}" if first == last else f"{first:,}-{last:,}")
            values.append(float(counts[number]))
    return Bars(title, tuple(kinds), (("documents", tuple(values)),), unit, "documents")
