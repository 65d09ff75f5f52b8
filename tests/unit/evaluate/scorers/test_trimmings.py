"""A dot, quotes, stars, capitals or a line break around a right answer change no score, in any corrected scorer."""

from __future__ import annotations

import pytest

from megatron_v2pe.evaluate.scorer_names import SCORERS

OPTIONS = {"A": "red", "B": "blue car", "C": "green"}
RIGHT: list[tuple[str, str, dict]] = [
    ("textvqa", "blue car", {"answers": ["blue car"] * 10}),
    ("textvqa", "blue car", {"answers": ["Blue car."] * 10}),
    ("stvqa_acc", "blue car", {"answers": ["blue car"]}),
    ("stvqa_anls", "blue car", {"answers": ["blue car"]}),
    ("docvqa", "blue car", {"answers": ["blue car"]}),
    ("docvqa", "12 march", {"answers": ["12 March."]}),
    ("chartqa", "blue car", {"answers": "blue car"}),
    ("chartqa", "12.5", {"answers": "12.5"}),
    ("chartqa", "12%", {"answers": "12%"}),
    ("ocrvqa", "blue car", {"answers": ["blue car"]}),
    ("ocrvqa", "b", {"answers": ["B"]}),
    ("gqa_convert", "blue car", {"answer": "blue car"}),
    ("vqa_post_process", "blue car", {"answer": "blue car"}),
    ("pope", "yes", {"answer": "yes"}),
    ("pope", "no", {"answer": "no"}),
    ("mm_niah", "b", {"answer": 1, "task": "retrieval-image-val"}),
    ("mm_niah", "1", {"answer": 1, "task": "retrieval-image-val"}),
    ("mm_niah", "[1, 2]", {"answer": [1, 2], "task": "counting-text-val"}),
    ("mm_niah", "blue car", {"answer": "blue car", "task": "reasoning-text-val"}),
    ("milebench", "blue car", {"kind": "rouge", "answer": "blue car"}),
    ("milebench", "blue car", {"kind": "needle", "answer": "blue car"}),
    ("milebench", "blue car", {"kind": "mmcoqa", "answer": "blue car"}),
    ("milebench", "b", {"kind": "multichoice", "answer": "blue car", "choices": list(OPTIONS.values())}),
    ("milebench", "blue car", {"kind": "multichoice", "answer": "blue car", "choices": list(OPTIONS.values())}),
    *[
        ("longvqa", "blue car", {"task": task, "answer": "blue car"})
        for task in ("chartqa", "docvqa", "deepform", "gqa", "wikitablequestions", "textvqa", "svqa", "?")
    ],
    ("longvqa", "a man on a blue car", {"task": "textcaps", "answer": "a man on a blue car"}),
    ("longvqa", "b", {"task": "svqa", "answer": "B"}),
    ("longvqa", "yes", {"task": "tabfact", "answer": "Yes"}),
    ("longvqa", "no", {"task": "gqa", "answer": "no"}),
    ("longvqa", "12", {"task": "gqa", "answer": "12"}),
    *[
        ("longvqa_metric", "a man on a blue car", {"metric": metric, "answer": "a man on a blue car"})
        for metric in "ACC F1 WTQ ANLS_DUE EACC RACC CACC ANLS TEXTVQA BLEU1 BLEU2 BLEU3 BLEU4 ROUGE".split()
    ],
    ("mmmu", "b", {"question_type": "multiple-choice", "options": OPTIONS, "answer": "B"}),
    ("mmmu", "blue car", {"question_type": "open", "answer": "blue car"}),
    ("mmmu", "3.5", {"question_type": "open", "answer": "3.5"}),
    ("mmmu_full", "b", {"question_type": "multiple-choice", "data_id": "validation_Art_1", "answer": "B"}),
    ("mmmu_full", "3.5", {"question_type": "short-answer", "data_id": "validation_Art_1", "answer": "3.5"}),
    ("mmbench", "b", {"options": OPTIONS, "answer": "B"}),
    ("mmbench", "blue car", {"options": OPTIONS, "answer": "B"}),
    ("scienceqa", "b", {"options": OPTIONS, "answer": "B"}),
    ("seed", "b", {"answer": "B", "question_type_id": 1}),
    ("mvbench", "b", {"answer": "(B) blue car", "task_type": "x"}),
    ("mvbench", "blue car", {"answer": "(B) blue car", "task_type": "x"}),
]
TRIMMINGS = {
    "dot": "{}.",
    "dots": "{}...",
    "Chinese dot": "{}。",
    "exclamation": "{}!",
    "stars": "**{}**",
    "stars and dot": "**{}**.",
    "quotes": '"{}"',
    "single quotes": "'{}'",
    "curly quotes": "“{}”",
    "quotes and dot": '"{}."',
    "code": "`{}`",
    "line break": "{}\n",
    "spaces": "  {}  ",
    "bullet": "- {}",
    "heading": "# {}",
    "end of turn": "{}<|im_end|>",
    "thought": "<think>\n\n</think>\n\n{}",
}


def test_every_scorer_is_in_the_table():
    assert {name for name, _, _ in RIGHT} == set(SCORERS) - {"longvqa_rectify"}  # which compares nothing


@pytest.mark.parametrize(("name", "answer", "rest"), RIGHT)
def test_trimmings_change_no_score(name, answer, rest):
    scorer = SCORERS[name]
    whole = scorer.score({"prediction": answer, **rest}, "corrected")
    assert whole >= 1
    dressed = {
        f"{trimming}, {change.__name__}": scorer.score({"prediction": form.format(change(answer)), **rest}, "corrected")
        for trimming, form in TRIMMINGS.items()
        for change in (str, str.upper, str.capitalize)
    }
    assert {form: score for form, score in dressed.items() if abs(score - whole) > 1e-9} == {}
