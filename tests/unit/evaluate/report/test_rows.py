"""Rows of the tables: columns of whole parts, averages of whole columns, signed differences, marks that stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_v2pe.evaluate.report.columns import GENERAL, LONG_CONTEXT, Average
from megatron_v2pe.evaluate.report.runs import EvaluationRun
from megatron_v2pe.evaluate.report.scoring import Score
from megatron_v2pe.evaluate.report.tables import published_rows, run_rows

RUN = EvaluationRun("ours", Path("ours"), {}, "-", ())


def exact(value, **changes):
    return Score(value, "answers", 10, 0, 0, **{"published": 10, **changes})


def everything(layout, value=50.0):
    columns = [column for column in layout.columns if not isinstance(column, Average)]
    return {part: exact(value) for column in columns for part in column.parts}


def rows(layout, reference, corrected=None, against="InternVL2-V2PE-32K"):
    scores = {"reference": {"ours": reference}, "corrected": {"ours": corrected or reference}}
    found = next((row for row in published_rows(layout) if row.name == against), None)
    return run_rows(layout, RUN, scores, "reference", found)


def test_a_whole_run_has_its_average_and_signed_differences():
    scores = {**everything(GENERAL), "chartqa_human": exact(40.0), "chartqa_augmented": exact(90.0)}
    ours, difference = rows(GENERAL, scores)
    assert ours.cells["ChartQA"].value == 65.0 and ours.cells["Avg"].value == pytest.approx((65 + 8 * 50) / 9)
    assert difference.cells["ChartQA"].value == pytest.approx(65 - 76.4)
    assert difference.cells["Avg"].value == pytest.approx(465 / 9 - 654.4 / 9)  # of the recomputed average
    assert difference.name == "ours - InternVL2-V2PE-32K" and difference.cells["Avg"].marks == "x"


def test_averages_of_the_long_table_are_of_groups():
    scores = everything(LONG_CONTEXT)
    for name in ("milebench_textneedleinahaystack", "milebench_imageneedleinahaystack"):
        scores[name] = exact(80.0)
    for task in ("retrieval", "counting", "reasoning"):
        scores[f"mmniah_test_{task}_image"] = exact(20.0)
    cells = rows(LONG_CONTEXT, scores)[0].cells
    assert cells["MileBench/Avg"].value == pytest.approx(60.0)  # not the mean of 28 sets
    assert cells["MM-NIAH/Image"].value == 20.0 and cells["MM-NIAH/Avg"].value == 35.0


def test_a_column_of_some_parts_is_marked_and_neither_averaged_nor_compared():
    scores = everything(GENERAL)
    del scores["chartqa_human"]
    ours, difference = rows(GENERAL, scores)
    assert ours.cells["ChartQA"].value == 50.0 and ours.cells["ChartQA"].marks == "p"
    assert ours.cells["ChartQA"].note == "1 of 2" and "ChartQA: no chartqa_human" in ours.notes
    assert ours.cells["Avg"].value is None and ours.cells["Avg"].note == "8 of 9"
    assert difference.cells["ChartQA"].value is None and difference.cells["Avg"].value is None
    assert difference.cells["DocVQA"].value == pytest.approx(50 - 83.9)


def test_what_was_not_asked_is_a_dash():
    (ours, difference) = rows(GENERAL, {"pope": exact(50.0)})
    assert [name for name, cell in ours.cells.items() if cell.value is not None] == ["POPE"]
    assert ours.cells["Avg"].note == "1 of 9" and difference.cells["POPE"].value == pytest.approx(-38.8)
    assert len(rows(LONG_CONTEXT, {"pope": exact(50.0)})) == 1  # nothing to compare


def test_the_test_split_counts_and_the_development_split_stands_in():
    scores = {**everything(GENERAL), "mmbench_dev_en": exact(10.0)}
    assert rows(GENERAL, scores)[0].cells["MMBench EN"].value == 50.0
    scores["mmbench_test_en"] = Score(None, "server", 10, 0, 0, problem="a server scores it")
    ours = rows(GENERAL, scores)[0]
    assert ours.cells["MMBench EN"].value == 10.0 and ours.cells["MMBench EN"].marks == "d"
    assert ours.cells["Avg"].marks == "d"


def test_marks_reach_averages_and_differences():
    scores = {**everything(GENERAL), "pope": Score(50.0, "answers", 10, 2, 1, limit=10, of_all=20, published=20)}
    ours, difference = rows(GENERAL, scores)
    assert ours.cells["POPE"].marks == ours.cells["Avg"].marks == "i"
    assert difference.cells["POPE"].marks == "i" and difference.cells["Avg"].marks == "ix"
    (note,) = [note for note in ours.notes if note.startswith("POPE")]
    assert note == "POPE: pope: 2 of 10 without an answer, 1 of 10 failed, only the first 10 of 20"


@pytest.mark.parametrize("other, count", [(50.04, 2), (50.06, 3), (None, 3)])
def test_the_other_mode_has_a_row_where_it_looks_different(other, count):
    found = rows(GENERAL, everything(GENERAL), {**everything(GENERAL), "pope": exact(other)})
    assert len(found) == count
    if count == 3:
        assert found[1].name == "ours (corrected)" and found[2].name == "ours - InternVL2-V2PE-32K"


def test_published_rows_have_recomputed_averages():
    cells = {row.name: row for row in published_rows(GENERAL)}
    ours = cells["InternVL2-V2PE-32K"]
    assert ours.cells["Avg"].value == pytest.approx(654.4 / 9) and ours.cells["Avg"].marks == "x"
    assert ours.notes == ("Avg is printed as 72.5",) and cells["InternVL2-2B"].notes == ()
    assert cells["GPT-4o"].cells["Avg"].value is None and cells["GPT-4o"].cells["Avg"].note == "8 of 9"
