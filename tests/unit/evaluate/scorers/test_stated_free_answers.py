"""Whether a free answer holds the true one: MMMU's open questions, MM-NIAH's texts, MileBench's needles, long answers.

These look for the truth inside the answer. What the answer rejects is not looked at, nor what stands beside an answer
it states, nor what it thought before.
"""

from __future__ import annotations

import pytest

from megatron_v2pe.evaluate.scorer_names import SCORERS

# (truth, answer, whether it is right)
HELD = [
    ("blue ridge", "Blue Ridge", True),
    ("blue ridge", "Blue Ridge.", True),
    ("blue ridge", "**Blue Ridge**", True),
    ("blue ridge", '"Blue Ridge"', True),
    ("blue ridge", "It is the Blue Ridge.", True),
    ("blue ridge", "The place is called Blue Ridge, as the second paragraph says.", True),
    ("blue ridge", "The answer is Blue Ridge.", True),
    ("blue ridge", "The answer is Blue Ridge, not Red Hill.", True),
    ("blue ridge", "Answer: Blue Ridge\nExplanation: Red Hill is another place.", True),
    ("blue ridge", "Not Red Hill but Blue Ridge.", True),
    ("blue ridge", "It is Blue Ridge rather than Red Hill.", True),
    ("blue ridge", "Instead of Red Hill, it is Blue Ridge.", True),
    ("blue ridge", "Red Hill is wrong. It is Blue Ridge.", True),
    ("blue ridge", "The answer is Red Hill. Wait, the answer is Blue Ridge.", True),
    ("blue ridge", "<think>Red Hill? Blue Ridge!</think>Blue Ridge", True),
    ("blue ridge", "<answer>Blue Ridge</answer>", True),
    ("blue ridge", '{"answer": "Blue Ridge"}', True),
    ("blue ridge", "\\boxed{\\text{Blue Ridge}}", True),
    ("blue ridge", "答案是Blue Ridge。", True),
    ("blue ridge", "# Answer\n\nBlue Ridge", True),
    ("blue ridge", "`Blue Ridge`", True),
    ("blue ridge", "BLUE RIDGE\n", True),
    ("blue ridge", "Red Hill", False),
    ("blue ridge", "It is not Blue Ridge.", False),
    ("blue ridge", "Not Blue Ridge but Red Hill.", False),
    ("blue ridge", "The answer is Red Hill, not Blue Ridge.", False),
    ("blue ridge", "The answer is Red Hill. Blue Ridge is another place.", False),
    ("blue ridge", "Red Hill rather than Blue Ridge.", False),
    ("blue ridge", "Red Hill instead of Blue Ridge", False),
    ("blue ridge", "Unlike Blue Ridge, Red Hill is in the text.", False),
    ("blue ridge", "Blue Ridge is wrong. It is Red Hill.", False),
    ("blue ridge", "Answer: Red Hill\nExplanation: Blue Ridge is mentioned later.", False),
    ("blue ridge", "The answer is Blue Ridge. Wait, the answer is Red Hill.", False),
    ("blue ridge", "<think>Blue Ridge</think>Red Hill", False),
    ("blue ridge", "<think>The answer is Blue Ridge", False),
    ("blue ridge", '{"answer": "Red Hill", "other": "Blue Ridge"}', False),
    ("blue ridge", "\\boxed{Red Hill} (Blue Ridge was the other one)", False),
    ("blue ridge", "I cannot tell.", False),
    ("blue ridge", "", False),
    ("12ab34", "12ab34", True),
    ("12ab34", "The code is 12ab34.", True),
    ("12ab34", "**12ab34**", True),
    ("12ab34", "The code is 12ab34, not 99zz99.", True),
    ("12ab34", "The code is 99zz99, not 12ab34.", False),
    ("12ab34", "<think>12ab34</think>99zz99", False),
    ("七号", "答案是七号。", True),
    ("七号", "七号", True),
    ("七号", "**七号**", True),
    ("七号", "不是七号，而是八号。", False),
    ("七号", "答案是八号，不是七号。", False),
    ("七号", "不是八号，是七号", True),
    ("12ab34", "It's not 12ab35. It's 12ab34.", True),
    ("12ab34", "The code is not 12ab34; it is 99zz99.", False),
    ("12ab34", "There is no code 12ab34.", False),
    ("blue ridge", "Although Red Hill is named, the answer is Blue Ridge.", True),
    ("blue ridge", "Although Blue Ridge is named, the answer is Red Hill.", False),
    ("blue ridge", "Answer: Blue Ridge (Red Hill is wrong)", True),
    ("blue ridge", "Without doubt Blue Ridge.", True),
    ("blue ridge", "Not only Red Hill but also Blue Ridge.", True),
    ("paris", "Answer: Paris (London is wrong)", True),
    ("no parking", "No parking", True),
    ("no parking", "The sign reads: no parking.", True),
    ("do not enter", "DO NOT ENTER", True),
]

ITEMS = {
    "mmmu": {"question_type": "open"},
    "mmmu_full": {"question_type": "short-answer", "data_id": "validation_Art_1"},
    "mm_niah": {"task": "reasoning-text-val"},
    "milebench needle": {"kind": "needle"},
    "milebench mmcoqa": {"kind": "mmcoqa"},
    "longvqa_metric CACC": {"metric": "CACC"},
}


@pytest.mark.parametrize("held", ITEMS)
def test_every_scorer_that_looks_inside_reads_alike(held):
    scorer = SCORERS[held.split()[0]]
    best = 100 if held.startswith("longvqa") else 1
    wrong = [
        (answer, truth, right)
        for truth, answer, right in HELD
        if scorer.score({"prediction": answer, "answer": truth, **ITEMS[held]}, "corrected") != best * right
    ]
    assert wrong == []


# (truth, answer, whether it is right)
NUMBERS = [
    ("15", "15", True),
    ("15", "15.", True),
    ("15", "**15**", True),
    ("15", "The answer is 15.", True),
    ("15", "x = 15", True),
    ("15", "The result is 15.0", True),
    ("15", "12 + 3 = 15", True),
    ("15", "First x = 4, then y = 11. Thus the sum is 15.", True),
    ("15", "The answer is 15, not 12.", True),
    ("15", "Final answer: 15\n\nA common mistake is 12.", True),
    ("15", "\\boxed{15}", True),
    ("15", "<think>12? 3?</think>15", True),
    ("15", '{"answer": 15}', True),
    ("15", "答案是15。", True),
    ("15", "Therefore, the number of bees is 15.", True),
    ("1,500", "The answer is 1500.", True),
    ("1500", "1,500", True),
    ("0.5", "The answer is .5", True),
    ("15", "12", False),
    ("15", "The answer is 12.", False),
    ("15", "The answer is 12, not 15.", False),
    ("15", "Answer: 12\nExplanation: 15 would be too many.", False),
    ("15", "\\boxed{12}, and 15 was a slip", False),
    ("15", "<think>15</think>12", False),
    ("15", "It is not 15.", False),
    ("15", "The answer is 15. Wait, the answer is 12.", False),
    ("15", "", False),
]


@pytest.mark.parametrize("name", ["mmmu", "mmmu_full"])
def test_numbers_of_open_questions(name):
    wrong = [
        (answer, truth, right)
        for truth, answer, right in NUMBERS
        if SCORERS[name].score({"prediction": answer, "answer": truth, **ITEMS[name]}, "corrected") != right
    ]
    assert wrong == []


# Long answers are compared word by word: what is said beside them does not count.
SENTENCE = "a man rides a brown horse along the beach"
DRESSED = [
    SENTENCE,
    SENTENCE.capitalize() + ".",
    f"**{SENTENCE}**",
    f'"{SENTENCE}"',
    SENTENCE + "\n",
    f"Answer: {SENTENCE}",
    f"**Answer:** {SENTENCE}.",
    f"The answer is: {SENTENCE}",
    f"<think>A woman? A donkey?</think>{SENTENCE}",
    f"<think>Hm.</think>\n<answer>{SENTENCE}</answer>",
    f'{{"answer": "{SENTENCE}"}}',
    f"{SENTENCE}<|im_end|>",
    f"答案：{SENTENCE}。",
]


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("milebench", {"kind": "rouge"}),
        ("longvqa", {"task": "textcaps"}),
        *[("longvqa_metric", {"metric": metric}) for metric in ("BLEU1", "BLEU4", "ROUGE", "ANLS")],
    ],
)
def test_long_answers_in_every_dress(name, rest):
    scorer = SCORERS[name]
    plain = scorer.score({"prediction": SENTENCE, "answer": SENTENCE, **rest}, "corrected")
    assert plain > 0.99
    for answer in DRESSED:
        assert scorer.score({"prediction": answer, "answer": SENTENCE, **rest}, "corrected") == pytest.approx(plain)
