"""The published tables digit by digit, their recomputed averages, and what the audit finds in them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from decimal import Decimal

import pytest

from helpers.shared import shared_path
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.report import audit
from megatron_v2pe.evaluate.report.columns import GENERAL, LAYOUTS, LONG_CONTEXT, Average
from megatron_v2pe.evaluate.report.published import LEADERBOARD, PUBLISHED, recomputed
from megatron_v2pe.evaluate.report.rounding import rounded


def test_columns_are_made_of_benchmarks_and_averages_of_columns():
    for layout in LAYOUTS:
        for column in layout.columns:
            if isinstance(column, Average):
                assert set(column.of) < set(layout.names)
            else:
                assert set((*column.parts, *column.stand_in)) <= set(BENCHMARKS)
    assert [len(average.of) for average in GENERAL.averages + LONG_CONTEXT.averages] == [9, 2, 3]
    parts = {column.name: len(column.parts) for column in LONG_CONTEXT.columns if not isinstance(column, Average)}
    assert parts == {
        **{"MM-NIAH/Image": 3, "MM-NIAH/Text": 3},
        **{"MileBench/T": 13, "MileBench/S": 13, "MileBench/NI": 2, "VideoMME": 1, "MVBench": 1},
    }


def test_what_does_not_follow():
    found = {(check.model, check.average): check for check in audit.check_averages() if check.printed is not None}
    wrong = {key: check for key, check in found.items() if check.verdict == "does not follow"}
    assert {key: (str(check.printed), rounded(check.recomputed, 2)) for key, check in wrong.items()} == {
        ("InternVL2-V2PE-32K", "Avg"): ("72.5", "72.71"),
        ("InternVL2-V2PE-32K", "MileBench/Avg"): ("72.5", "73.03"),
    }
    near = {key for key, check in found.items() if check.verdict == "within rounding"}
    assert near == {("Gemini-1.5", "MM-NIAH/Avg"), ("InternVL2-V2PE-32K", "MM-NIAH/Avg")}
    assert len(found) == 13 and sum(check.verdict == "follows" for check in found.values()) == 9
    unknown = [check for check in audit.check_averages() if check.verdict == "cannot be recomputed"]
    assert len(unknown) == 19
    assert next(check for check in unknown if check.model == "GPT-4o").missing == ("InfoVQA",)


@pytest.mark.parametrize(
    "printed, verdict",
    [("72.4", "follows"), ("72.3", "within rounding"), ("72.5", "does not follow"), ("72.2", "does not follow")],
)
def test_the_bound(printed, verdict, monkeypatch):
    row = next(row for row in PUBLISHED["general"] if row.model == "InternVL2-2B")
    assert rounded(recomputed(GENERAL, row)["Avg"], 4) == "72.3889"  # 0.0889 above 72.3, 0.1111 below 72.5
    monkeypatch.setitem(PUBLISHED, "general", (replace(row, printed={**row.printed, "Avg": Decimal(printed)}),))
    assert audit.check_averages()[0].verdict == verdict


def test_planted_faults_are_found(monkeypatch):
    vila = next(row for row in PUBLISHED["long_context"] if row.model == "VILA")
    missing = replace(vila, printed={**vila.printed, "MM-NIAH/Text": None})
    full = replace(vila, model="Full", printed={**vila.printed, "MM-NIAH/Avg": None})
    monkeypatch.setitem(PUBLISHED, "long_context", (missing, full))
    checks = {(check.model, check.average): check.verdict for check in audit.check_averages()}
    assert checks["VILA", "MM-NIAH/Avg"] == "printed though columns are missing"
    assert "Full: MM-NIAH/Avg is not printed though all its columns are." in audit.oddities()
    small = replace(PUBLISHED["general"][0], size="3.0B")
    monkeypatch.setitem(PUBLISHED, "general", (small,))
    monkeypatch.setitem(PUBLISHED, "long_context", (replace(full, model="InternVL2-2B"),))
    assert any("InternVL2-2B: #Param is 13B in one table, 3.0B" in text for text in audit.oddities())


def test_what_else_disagrees():
    found = audit.oddities()
    for start in (
        "DeepSeek-VL-1.3B: #Param is printed as 2.0B",
        "Vintern-3B-beta: #Param is printed as 3.7B",
        "InternVL2-2B: #Param is printed as 2.0B, its architecture has 2,205,754,368: 2.2B",
        "MileBench/Avg: bold is 68.8 (Gemini-1.5), the highest is 72.5 (InternVL2-V2PE-32K)",
        "VILA: MM-NIAH/Text is printed as 40.5",
        "Gemini-1.5: MM-NIAH/Image is printed as 28.5",
        "Gemini-1.5: MM-NIAH/Text is printed as 82.1",
    ):
        assert sum(text.startswith(start) for text in found) == 1, start
    assert len(found) == 8 and not any("GPT-4V" in text for text in found)


def test_rounding_is_half_up_of_the_decimal():
    assert [rounded(20.95), rounded(0.05), rounded(-0.05), rounded(-0.04)] == ["21.0", "0.1", "-0.1", "0.0"]
    assert rounded(0.0, signed=True) == "+0.0" and rounded(654.4 / 9, 2) == "72.71"


def test_tables_agree_with_the_published_readme():
    """Every cell, bold print and row of both tables against the file itself."""
    text = shared_path("seed_readme.md").read_text(encoding="utf-8")
    tables = text.split("**General MLLM Benchmarks**")[2].split("## ")[0].split("**Long-Context MLLM Benchmarks**")
    for layout, table in zip(LAYOUTS, tables, strict=True):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        header = [re.sub(r"<sub>(.*?)</sub>", r" \1", cell.strip()) for cell in lines[0].strip("|").split("|")]
        assert [name.lower() for name in header[2:]] == [name.lower() for name in layout.names]
        assert len(lines) - 2 == len(PUBLISHED[layout.name])
        for line, row in zip(lines[2:], PUBLISHED[layout.name], strict=True):
            model, size, *cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            assert row.model in (model.strip("*"), f"{model} {size}") and size == row.size
            for name, cell in zip(layout.names, cells, strict=True):
                assert cell.strip("*") == ("-" if row.printed[name] is None else str(row.printed[name]))
                assert cell.startswith("**") == (name in row.bold), (model, name)


@pytest.mark.parametrize(
    "model, folder", [("VILA", "VILA1.0-13b-llava"), ("Gemini-1.5", "Gemini-1.5"), ("GPT-4V", "GPT-4V")]
)
def test_leaderboard_means_agree_with_its_files(model, folder):
    path = shared_path(f"real/annotation_only/mm_niah/leaderboard/{folder}/scores_test.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    for kind, known in zip(("image", "text"), LEADERBOARD[model], strict=True):
        rows = [values for name, values in content.items() if name.endswith(f"-{kind}-test")]
        assert (known is None) == (not rows)
        if known is not None:
            assert len(rows) == 3 and all(len(row) == 11 for row in rows)
            assert rounded(100 * sum(map(sum, rows)) / 33, 2) == str(known)
