"""The packing benchmark: every way of packing beside the bound, both with a file and with drawn lengths."""

from __future__ import annotations

from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
SMALL = ["--windows", "500", "--many", "3000", "--ranks", "2", "8", "--step", "16"]


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from perf import packing

    return packing.run


def test_drawn(run, monkeypatch, tmp_path):
    monkeypatch.setenv("MEGATRON_V2PE_SHARED", str(tmp_path))
    result = run(["--documents", "2000", *SMALL])
    assert result["lengths"] == "drawn, no file given (seed 0)" and result["documents"] == 2000
    ways = {row["way"]: row for row in result["packs"]}
    assert list(ways) == [
        "bound",
        "planned, whole epoch",
        "planned, window 500",
        "best fit, 20 open",
        "reference, 20 open",
    ]
    assert ways["planned, whole epoch"]["ratio"] <= 1.005 < ways["reference, 20 open"]["ratio"]
    assert result["packs of at most 60 tiles"][1]["ratio"] >= 1
    [many] = result["many documents"]
    assert many["documents"] == 3000 and many["packs"] > 0
    uneven = result["attention of the busiest rank, by the mean rank"]
    assert [row["ranks"] for row in uneven] == [2, 8]
    assert all(1 <= row["dealt"] < row["in turn"] for row in uneven)


def test_file(run, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("# remark\ntokens,tiles\n" + "20000,10\n13000,20\n40000,1\n" * 40)
    result = run(["--lengths", str(path), *SMALL])
    assert result["lengths"] == "mine.csv" and result["longer than a pack"] == 40
    assert {row["packs"] for row in result["packs"]} == {40}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max-tokens", "10"], "no document fits into 10 tokens and 135 tiles"),
        (["--step", "100000"], "packs are fewer than the 100000 of one step"),
    ],
)
def test_mistakes(run, argv, words, monkeypatch, tmp_path):
    monkeypatch.setenv("MEGATRON_V2PE_SHARED", str(tmp_path))
    with pytest.raises(ValueError, match=words):
        run(["--documents", "200", *SMALL, *argv])
