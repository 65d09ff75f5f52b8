"""What a report says: its sections, from runs, tables, audit, heat maps and series."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from megatron_v2pe.base.pages.blocks import (
    Entry,
    Line,
    Points,
    ReportBlock,
    ReportPicture,
    Section,
    Style,
    Table,
    text_line,
)
from megatron_v2pe.evaluate.report.audit import BOUND, Check
from megatron_v2pe.evaluate.report.columns import LAYOUTS, Average, Column, TableLayout
from megatron_v2pe.evaluate.report.own import MODE as OWN_MODE
from megatron_v2pe.evaluate.report.published import SOURCE
from megatron_v2pe.evaluate.report.rounding import rounded
from megatron_v2pe.evaluate.report.runs import EvaluationRun
from megatron_v2pe.evaluate.report.scoring import MODES, Score, Scores
from megatron_v2pe.evaluate.report.series import Point, StrideGrid, length_order
from megatron_v2pe.evaluate.report.tables import MARKS, Kind, Row, listed, score_marks
from megatron_v2pe.evaluate.scorers import Mode

_STYLES: dict[Kind, Style] = {"published": "", "run": "run", "other mode": "other", "difference": "difference"}
_MODES_TOLD = {
    "reference": "as the published code scores, its defects included: what published numbers can be compared with",
    "corrected": "the same metrics without the published code's defects: not what published numbers were computed by",
}


def runs_section(runs: Sequence[EvaluationRun], mode: Mode) -> Section:
    """Return what the runs are and how they were scored."""
    if not runs:
        return Section("Runs", ["No run is given: the published tables and their audit only."])
    header = ("run", "checkpoint", "stride", "max_num", "asked in mode", "dtype", "window", "code")
    lines = [
        text_line(
            *(run.name, run.checkpoint[:12], run.stride),
            *(str(run.settings.get(name, "-")) for name in ("max_num", "mode", "dtype", "window")),
            run.code,
        )
        for run in runs
    ]
    return Section(
        "Runs",
        [
            Table(header, tuple(lines), left=len(header)),
            f"Scores are in mode {mode}: {_MODES_TOLD[mode]}. They are computed from the raw answers. The mode a run "
            "asked in decides on prompts; it is not changed by scoring.",
        ],
    )


def table_section(layout: TableLayout, rows: Sequence[Row]) -> Section:
    """Return one of the two tables, with what its marks and dashes stand for."""
    lines = [
        Line(
            (Entry(row.name), Entry(row.size), *(_number(row, name) for name in layout.names)),
            _STYLES[row.kind],
        )
        for row in rows
    ]
    used = {mark for row in rows for cell in row.cells.values() for mark in cell.marks}
    ours = any(row.kind == "run" for row in rows)
    blocks: list[ReportBlock] = [
        Table(("Model", "#Param", *layout.names), tuple(lines)),
        f"Published rows: {SOURCE}; averages of all rows are recomputed from their columns, a dash with a count has "
        "too few of them." + (" Differences are ours minus published, in points." if ours else ""),
    ]
    blocks += _meanings(used)
    remarks: dict[str, list[str]] = {}
    for row in (row for row in rows if row.kind != "other mode"):
        for note in row.notes:
            remarks.setdefault(note, []).append(row.name)
    if remarks:
        blocks.append(Points(tuple(f"{listed(names)}: {note}." for note, names in remarks.items())))
    return Section(layout.title, blocks)


def _number(row: Row, name: str) -> Entry:
    cell = row.cells[name]
    if cell.value is None:
        return Entry(f"- ({cell.note})" if cell.note else "-")
    text = rounded(cell.value, signed=row.kind == "difference")
    return Entry(f"{text} ({cell.note})" if cell.note else text, cell.marks, strong=row.kind == "run")


def columns_section() -> Section:
    """Return what each column is made of."""
    lines: list[Line] = []
    for layout in LAYOUTS:
        for column in layout.columns:
            lines.append(text_line(column.name, _made_of(column)))
    return Section("What a column is", [Table(("column", "mean of"), tuple(lines), left=2)], folded=True)


def _made_of(column: Column | Average) -> str:
    if isinstance(column, Average):
        return f"the {len(column.of)} columns {', '.join(column.of)}"
    instead = f"; where none has a score {', '.join(column.stand_in)}, marked" if column.stand_in else ""
    return ", ".join(column.parts) + instead


def audit_section(checks: Sequence[Check], oddities: Sequence[str]) -> Section:
    """Return what the published averages do not follow from, and what cannot be checked."""
    order = ("does not follow", "printed though columns are missing", "within rounding", "follows")
    printed = sorted((check for check in checks if check.printed is not None), key=lambda one: order.index(one.verdict))
    lines = [
        text_line(
            *(check.model, check.average, check.verdict, str(check.printed)),
            "-" if check.recomputed is None else rounded(check.recomputed, 2),
            "-" if check.difference is None else rounded(check.difference, 2, signed=True),
            style="run" if check.verdict == order[0] or check.verdict == order[1] else "",
        )
        for check in printed
    ]
    wrong = sum(check.verdict == "does not follow" for check in checks)
    unfounded = sum(check.verdict == "printed though columns are missing" for check in checks)
    unknown = [check for check in checks if check.recomputed is None]
    sentences = [
        f"{check.model}: {check.average}: {check.columns} of {check.of} columns, without {', '.join(check.missing)}."
        for check in unknown
        if check.columns
    ]
    for average in dict.fromkeys(check.average for check in unknown if not check.columns):
        models = [check.model for check in unknown if check.average == average and not check.columns]
        sentences.append(f"{', '.join(models)}: {average}: no column at all.")
    return Section(
        "Audit of the published averages",
        [
            f"{wrong} of {len(printed)} printed averages do not follow from their columns: they differ by more than "
            f"{BOUND}, which is all that rounding to one decimal explains (0.05 of the columns' mean, 0.05 of the "
            f"average). {unfounded} are printed though columns are missing.",
            Table(("model", "average", "verdict", "printed", "recomputed", "difference"), tuple(lines), left=3),
            f"{len(unknown)} averages cannot be recomputed for want of columns:",
            Points(tuple(sentences)),
            "What else does not agree:",
            Points(tuple(oddities)),
        ],
    )


def heat_map_section(pictures: Sequence[ReportPicture], used: Collection[str]) -> Section:
    """Return the heat maps, with what their marks stand for."""
    return Section(
        "MM-NIAH by length and depth",
        [
            "Percent, mean over the samples of a cell; a mean over tasks leaves out tasks without samples there. "
            "Numbers: heat_maps.csv.",
            *_meanings(used),
            *pictures,
        ],
    )


def _meanings(used: Collection[str]) -> list[ReportBlock]:
    """Return what marks stand for, nothing where there are none."""
    return [Points(tuple(f"{mark}: {MARKS[mark]}." for mark in MARKS if mark in used))] if used else []


def series_section(points: Sequence[Point], pictures: Sequence[ReportPicture]) -> Section:
    """Return the scores by length, a table per suite."""
    blocks: list[ReportBlock] = []
    for suite in dict.fromkeys(point.suite for point in points):
        mine = [point for point in points if point.suite == suite]
        lengths = tuple(sorted({point.length for point in mine}, key=length_order))
        lines: list[Line] = []
        for run in dict.fromkeys(point.run for point in mine):
            there = {point.length: point for point in mine if point.run == run}
            stride = next(iter(there.values())).stride
            lines.append(Line((Entry(run), Entry(stride), *(_point(there.get(length)) for length in lengths))))
        blocks += [f"{suite}:", Table(("run", "stride", *lengths), tuple(lines), left=2)]
    blocks += _meanings({mark for point in points for mark in point.marks})
    return Section("Score by length", [*blocks, "Numbers: by_length.csv.", *pictures])


def _point(point: Point | None) -> Entry:
    if point is None:
        return Entry("-")
    share = f" ({point.parts} of {point.of})" if point.parts < point.of else ""
    return Entry(rounded(point.value) + share, point.marks)


def stride_section(
    grids: Sequence[StrideGrid], pictures: Sequence[ReportPicture], runs: Sequence[EvaluationRun]
) -> Section:
    """Return the scores by stride and length, with what else differs between the runs that are compared."""
    blocks: list[ReportBlock] = [
        "Runs of one checkpoint with different strides; a stride of 256 places tokens as default does. Numbers: "
        "by_stride.csv."
    ]
    for checkpoint in dict.fromkeys(grid.checkpoint for grid in grids):
        mine = [run for run in runs if run.checkpoint == checkpoint]
        differing = sorted(
            name
            for name in {name for run in mine for name in run.settings} - {"rope_pos_id_version", "rope_pos_id_stride"}
            if len({str(run.settings[name]) for run in mine if name in run.settings}) > 1  # older ones note less
        )
        if differing:
            blocks.append(f"Besides their stride, the runs of {checkpoint[:12]} differ in {', '.join(differing)}.")
    for grid in grids:
        lines = [
            text_line(stride, *("-" if value is None else rounded(value) for value in values))
            for stride, values in zip(grid.strides, grid.values, strict=True)
        ]
        marks = f" (marks: {grid.marks})" if grid.marks else ""
        blocks += [
            f"{grid.suite}, checkpoint {grid.checkpoint[:12]}{marks}:",
            Table(("stride", *grid.lengths), tuple(lines)),
        ]
    blocks += _meanings({mark for grid in grids for mark in grid.marks})
    return Section("Score by stride and length", [*blocks, *pictures])


def completeness_section(scores: Scores, mode: Mode) -> Section:
    """Return what is incomplete or has no number, in the mode of the report; own questions in theirs."""
    lines: list[Line] = []
    waiting: list[str] = []
    for run, found in scores[mode].items():
        mine = {name: scores[OWN_MODE][run][name] if score.own else score for name, score in found.items()}
        served = [name for name, score in mine.items() if score.source == "server" and score.value is None]
        if served:
            waiting.append(f"{run}: only a server scores {', '.join(served)}; give its score with --server-score.")
        for name, score in mine.items():
            if score.incomplete or score.stopped or score.empty_cells or (score.problem and name not in served):
                lines.append(_told(run, name, score))
        if unknown := [name for name, score in mine.items() if score.unchecked]:
            waiting.append(f"{run}: {MARKS['u']}: {listed(unknown)}.")
    blocks: list[ReportBlock] = [Points(tuple(waiting))] if waiting else []
    if not lines:
        said = "Every other benchmark" if waiting else "Every benchmark"
        return Section("Completeness", [f"{said} of every run is complete.", *blocks])
    note = (
        "Questions without an answer and failed ones are scored as answered by nothing. In reference mode that is not "
        "always wrong: the published MileBench takes an empty answer for option C, MVBench for right, and an answer at "
        "which the published code stops is left out of the mean."
    )
    header = ("run", "benchmark", "what is missing", "score", "of the answered")
    return Section("Completeness", [note, Table(header, tuple(lines), left=3), *blocks])


def _told(run: str, name: str, score: Score) -> Line:
    remarks = [score.completeness] if score.completeness else []
    remarks += [f"{score.stopped} of {score.questions} left out: the published code stops"] if score.stopped else []
    remarks += [f"{score.empty_cells} cells of length and depth are empty and count as 0"] if score.empty_cells else []
    remarks += [score.problem] if score.problem else []
    numbers = ["-" if value is None else rounded(value) for value in (score.value, score.answered_value)]
    marks = (score_marks(score) if score.value is not None else "", "")
    entries = [Entry(text, mark) for text, mark in zip(numbers, marks, strict=True)]
    return Line((Entry(run), Entry(name), Entry("; ".join(remarks)), *entries))


def scores_section(scores: Scores, titles: Mapping[str, str]) -> Section:
    """Return every benchmark of every run in both modes."""
    lines: list[Line] = []
    for run in scores[MODES[0]]:
        for name in scores[MODES[0]][run]:
            both = [scores[mode][run][name] for mode in MODES]
            numbers = [
                Entry("-") if score.value is None else Entry(rounded(score.value, 2), score_marks(score))
                for score in both
            ]
            lines.append(Line((Entry(run), Entry(titles.get(name, name)), *numbers, Entry(str(both[0].questions)))))
    header = ("run", "benchmark", *MODES, "questions")
    used = {
        mark for mine in scores.values() for run in mine.values() for one in run.values() for mark in score_marks(one)
    }
    return Section(
        "Every benchmark in both modes", [Table(header, tuple(lines), left=2), *_meanings(used)], folded=True
    )
