"""Digits that are no number to `int`, and numbers that are too long for it, end no program: the kind of fault.

`str.isdigit` holds for superscripts and circled digits; a name, a variable or an answer may have them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_v2pe.base.whole_numbers import is_whole_number
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.page.run_files import open_run
from megatron_v2pe.workshop.long_context.draws import TokenRange

ROOT = Path(__file__).resolve().parents[3]
AS_PUBLISHED = ["megatron_v2pe/evaluate/families/mm_niah/scorer.py"]
"""Files that repeat what the published code does, which stops at such a number."""
ODD = ("²", "①", "１", "٣", "9" * 5000, "", "-1", " 1", "1_0")


def test_no_text_is_a_number_that_cannot_be_read():
    assert not [text for text in ODD if is_whole_number(text)]
    assert [int(text) for text in ("0", "007", "9" * 18) if is_whole_number(text)] == [0, 7, 10**18 - 1]
    assert not is_whole_number("9" * 19) and not is_whole_number("1000", digits=3)
    for text in ODD:
        with pytest.raises(ConfigError, match="target tokens"):
            TokenRange.parse(text)


def test_folders_of_other_names_are_no_evaluation(tmp_path):
    for name in ("iter_²", "iter_٣", "iter_", "iter_0000002", "iter_00000010"):
        (tmp_path / "run" / "evaluation" / name).mkdir(parents=True)
    (tmp_path / "run" / "logs").mkdir()
    (tmp_path / "run" / "logs" / "metrics.jsonl").write_text('{"iteration": 1, "loss": 1.0}\n')
    assert open_run(tmp_path / "run").evaluated == 10


def test_nothing_asks_isdigit():
    calls = re.compile(r"\.is(digit|numeric)\(")
    files = [path for folder in ("megatron_v2pe", "tools", "scripts") for path in (ROOT / folder).rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in files if calls.search(path.read_text(encoding="utf-8"))]
    assert len(files) > 300 and found == AS_PUBLISHED, (
        "base/whole_numbers.py says why; is_whole_number asks what int can read"
    )
