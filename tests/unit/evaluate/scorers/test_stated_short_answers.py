"""Which short answer is stated by an answer that explains itself, in the styles of real models.

An answer's cue ("the answer is", a box, a tag, JSON, bold print) or its first line decides; what is rejected or comes
as explanation does not. A sentence without any cue stays what it is: the published metrics compare it as a whole, and
so does the corrected form. Every line is tried with every scorer of short answers.
"""

from __future__ import annotations

import pytest

from megatron_v2pe.evaluate.scorer_names import SCORERS

# (truth, answer, whether it is right)
ANSWERS = [
    ("red", "red", True),
    ("red", "Red.", True),
    ("red", "**Red**", True),
    ("red", '"red"', True),
    ("red", "'red'", True),
    ("red", "“Red”", True),
    ("red", "`red`", True),
    ("red", "red\n", True),
    ("red", "RED!", True),
    ("red", "red。", True),
    ("red", "ｒｅｄ", True),
    ("red", "- red", True),
    ("red", "The answer is red.", True),
    ("red", "The answer is: red", True),
    ("red", "Answer: red", True),
    ("red", "Answer: Red.\nExplanation: the sign is not blue.", True),
    ("red", "**Answer:** red\n\nThe sign next to it is blue.", True),
    ("red", "Final answer: red", True),
    ("red", "The correct answer is **red**.", True),
    ("red", "So the final answer is red.", True),
    ("red", "The answer is red, not blue.", True),
    ("red", "The answer is red because the sign is painted red.", True),
    ("red", "### Answer\nred", True),
    ("red", "The answer is \\boxed{red}.", True),
    ("red", "$\\boxed{\\text{red}}$", True),
    ("red", '{"answer": "red"}', True),
    ("red", "{'answer': 'Red'}", True),
    ("red", '```json\n{"answer": "red", "confidence": 0.9}\n```', True),
    ("red", "<think>Is it blue? The answer is blue. No.</think>red", True),
    ("red", "<think>It is blue.</think>\n<answer>red</answer>", True),
    ("red", "The answer is blue. Wait, no. The answer is red.", True),
    ("red", "red\n\nExplanation: the sign is painted in that colour, unlike the blue one.", True),
    ("red", "red, not blue", True),
    ("red", "red rather than blue", True),
    ("red", "答案是red。", True),
    ("red", "答案：red", True),
    ("红色", "答案是红色。", True),
    ("红色", "红色。", True),
    ("红色", "**红色**", True),
    ("红色", "答案：红色\n解释：不是蓝色。", True),
    ("12", "12.", True),
    ("12", "**12**", True),
    ("12", "The answer is 12.", True),
    ("12", "Answer: 12", True),
    ("12", "\\boxed{12}", True),
    ("3.5", "3.5", True),
    ("3.5", "3.5.", True),
    ("3.5", "The answer is 3.5.", True),
    ("yes", "Yes.", True),
    ("yes", "Yes, there is a red sign.", True),
    ("no", "No, the sign is blue.", True),
    ("no", "No. There is only a sign.", True),
    ("yes", "The answer is yes.", True),
    ("no", "No idea", False),
    ("no", "Not sure", False),
    ("no", "I cannot tell.", False),
    ("yes", "Yes and no", False),
    ("red", "blue", False),
    ("red", "The answer is blue. Red is wrong.", False),
    ("red", "The answer is blue, not red.", False),
    ("red", "not red", False),
    ("red", "blue rather than red", False),
    ("red", "The answer is red. Wait, no. The answer is blue.", False),
    ("red", "<think>red</think>blue", False),
    ("red", "<think>The answer is red", False),
    ("red", "Answer: blue\nExplanation: the other sign is red.", False),
    ("red", "blue\nred", False),
    ("red", "red or blue", False),
    ("red", "The answer is red or blue.", False),
    ("red", "", False),
    ("blue whale", "The answer is a whale.", False),
    ("new york", "New York.", True),
    ("new york", "Answer: New York", True),
    ("dr. pepper", "Dr. Pepper", True),
    ("dr. pepper", "The answer is Dr. Pepper.", True),
    ("j. smith", "J. Smith.", True),
    ("nokia", "The brand is **Nokia**.", True),
    ("nokia", "It is Nokia.", True),
    ("nokia", "It is a Nokia.", True),
    ("the nokia", "The answer is the Nokia.", True),
    ("nokia", "It's Nokia, not Motorola.", True),
    ("nokia", "Nokia\n\nThe name stands above the display. It is a phone.", True),
    ("nokia", "The answer is Nokia, which is a Finnish brand.", True),
    ("nokia", "The **Motorola** stands beside the **Nokia**.", False),
    ("nokia", "It is not Nokia.", False),
    ("yes", "Yes it is.", True),
    ("stop", '"STOP"', True),
    ("don't walk", '"DON\'T WALK"', True),
    ("o'neill", "O'Neill.", True),
    ("10:30", "The answer is 10:30.", True),
    ("a.m.", "The answer is A.M.", True),
    ("$5", "The answer is $5.", True),
    ("42%", "The answer is 42%.", True),
    ("-3", "The answer is -3.", True),
    ("c++", "The answer is C++.", True),
    ("42", "The answer is $\\boxed{42}$.", True),
    ("blue", "The answer is red? No, the answer is blue.", True),
    ("red", "The answer is red? No, the answer is blue.", False),
    ("blue", "Not red. The answer is blue.", True),
    ("红色", "红色，不是蓝色", True),
    ("红色", "答案是红色，因为标志是红色的。", True),
    ("unanswerable", "Unanswerable.", True),
]

SCORED = {
    "textvqa": lambda answer, truth: {"prediction": answer, "answers": [truth] * 10},
    "stvqa_acc": lambda answer, truth: {"prediction": answer, "answers": [truth]},
    "stvqa_anls": lambda answer, truth: {"prediction": answer, "answers": [truth]},
    "docvqa": lambda answer, truth: {"prediction": answer, "answers": [truth]},
    "chartqa": lambda answer, truth: {"prediction": answer, "answers": truth},
    "ocrvqa": lambda answer, truth: {"prediction": answer, "answers": [truth]},
    "gqa_convert": lambda answer, truth: {"prediction": answer, "answer": truth},
    **{
        f"longvqa {task}": lambda answer, truth, task=task: {"prediction": answer, "answer": truth, "task": task}
        for task in ("gqa", "chartqa", "docvqa", "textvqa", "vizwiz", "wikitablequestions", "deepform", "unknown")
    },
    **{
        f"longvqa_metric {metric}": lambda answer, truth, metric=metric: {
            "prediction": answer,
            "answer": truth,
            "metric": metric,
        }
        for metric in ("ACC", "EACC", "RACC", "F1", "WTQ", "ANLS", "ANLS_DUE", "TEXTVQA")
    },
}


@pytest.mark.parametrize("scored", SCORED)
def test_every_scorer_of_short_answers_reads_alike(scored):
    scorer = SCORERS[scored.split()[0]]
    best = 100 if scored.startswith("longvqa") else 1
    wrong = [
        (answer, truth, right)
        for truth, answer, right in ANSWERS
        if (scorer.score(SCORED[scored](answer, truth), "corrected") > best - 1e-9) != right
    ]
    assert wrong == []


def test_a_sentence_without_a_cue_stays_what_it_is():
    """So that corrected numbers of sentences stay those of the published metric."""
    for name in ("textvqa", "ocrvqa", "chartqa", "stvqa_acc"):
        assert SCORERS[name].score(SCORED[name]("The colour of the sign is red.", "red"), "corrected") == 0


def test_yes_and_no_are_not_read_out_of_the_truth():
    """`No parking` and `No entry` are two texts, not two times no; nor is `Yes, sir` a yes."""
    for task in ("gqa", "vizwiz", "okvqa", "ocrvqa"):
        item = {"task": task, "prediction": "No entry", "answer": "No parking"}
        assert SCORERS["longvqa"].score(item, "corrected") == 0
        assert SCORERS["longvqa"].score({**item, "prediction": "No parking."}, "corrected") == 100


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("vitamin B", "hepatitis B", False),
        ("hepatitis B", "hepatitis B", True),
        ("Hepatitis B.", "hepatitis B", True),
        ("The answer is hepatitis B.", "hepatitis B", True),
        ("vitamin B", "vitamin C", False),
        ("B", "hepatitis B", False),
        ("B", "B", True),
        ("vitamin B", "B", False),
        ("Option B", "B", True),
        ("B. hepatitis B", "B", True),
        ("B", "B. hepatitis B", True),
        ("hepatitis B", "B. hepatitis B", True),
        ("C. hepatitis B", "B", False),
        ("A. vitamin B", "A", True),
        ("a dog", "a dog", True),
        ("A dog", "A", False),
        ("The answer is A.", "A", True),
        ("D. The answer is D, not B.", "B", False),
    ],
)
def test_svqa_reads_no_letter_out_of_the_truth(answer, truth, right):
    item = {"task": "svqa", "prediction": answer, "answer": truth}
    assert SCORERS["longvqa"].score(item, "corrected") == 100 * right
