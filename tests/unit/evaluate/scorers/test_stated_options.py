"""Which option an answer states that explains itself: in the styles of real models, with the right reading.

A rejected option and one that is only restated are not the answer; a stated answer wins over a later mention; what
stays open is no answer. Every line is tried with every scorer that reads letters.
"""

from __future__ import annotations

import pytest

from megatron_v2pe.evaluate.scorers import SCORERS
from megatron_v2pe.evaluate.scorers.option_letter import named_letter

OPTIONS = {"A": "a blue square", "B": "a red circle", "C": "a green triangle", "D": "a yellow star"}
LIST = "A. a blue square\nB. a red circle\nC. a green triangle\nD. a yellow star\n"
PHOTO = {"A": "vitamin B", "B": "hepatitis B", "C": "vitamin C", "D": "none of them"}

# (answer, letter or None); letters alone decide
LETTERS: list[tuple[str, str | None]] = [
    # the letter alone, in every dress
    ("B", "B"),
    ("b", "B"),
    ("B.", "B"),
    ("B\n", "B"),
    ("(B)", "B"),
    ("[B]", "B"),
    ("**B**", "B"),
    ("**B.**", "B"),
    ("`B`", "B"),
    ('"B"', "B"),
    ("Ｂ", "B"),
    ("（Ｂ）", "B"),
    ("ｂ。", "B"),
    ("B)", "B"),
    ("B、", "B"),
    ("【B】", "B"),
    ("「B」", "B"),
    ("$B$", "B"),
    ("\\boxed{B}", "B"),
    ("$\\boxed{\\text{B}}$", "B"),
    ("\\[\\boxed{\\mathrm{B}}\\]", "B"),
    ("A", "A"),
    ("a", "A"),
    # the letter first, reasons behind it
    ("B) because A has no corners.", "B"),
    ("B. The shape is round, unlike A and C.", "B"),
    ("B because option C is a triangle.", "B"),
    ("B, since C does not fit.", "B"),
    ("B: the circle", "B"),
    ("B - the shape is round", "B"),
    ("B\n\nExplanation: A is a square and C is a triangle.", "B"),
    ("**B**\n\nThe shape in the picture is round. Option C shows corners.", "B"),
    ("(B) A square has four corners, so A cannot be right.", "B"),
    ("A. It has four corners; B has none.", "A"),
    ("B is the correct answer. A is not.", "B"),
    ("B，因为C有三个角。", "B"),
    ("B。图中是圆形，选项C不对。", "B"),
    # declared, another one rejected behind it
    ("The correct answer is B. Option C is incorrect because the colour differs.", "B"),
    ("Answer: B\nExplanation: choice C does not fit.", "B"),
    ("The answer is B, not C.", "B"),
    ("The answer is (B). Option A is wrong, option C is wrong and option D is wrong.", "B"),
    ("The best choice is B rather than C.", "B"),
    ("I would choose B over C.", "B"),
    ("I'd go with B instead of D.", "B"),
    ("I pick B.", "B"),
    ("My answer is **B**. Options A, C and D can be ruled out.", "B"),
    ("Option B is correct. Option C would need three corners.", "B"),
    ("Option B is the right one, whereas option C is a triangle.", "B"),
    ("The correct option is: **B. a red circle**\n\nWhy not C? It has three corners.", "B"),
    ("Final answer: B", "B"),
    ("**Final Answer:** B", "B"),
    ("### Answer\n\nB\n\n### Explanation\n\nOption C is a triangle.", "B"),
    ("**Answer:** (B)\n\n**Reasoning:** Choice D is a star.", "B"),
    ("Correct Answer - B", "B"),
    ("Answer → B", "B"),
    ("The answer is most likely B.", "B"),
    ("The answer is clearly option B, although C looks similar.", "B"),
    ("The answer would be B.", "B"),
    ("Based on the image, the answer should be B. (C is a distractor.)", "B"),
    ("the answer is b", "B"),
    ("The answer is A", "A"),
    ("The answer is A.", "A"),
    ("Option A is correct; B is not.", "A"),
    ("It is B. Unlike C, it is round.", "B"),
    ("So B.", "B"),
    ("Therefore, B.", "B"),
    ("Thus the shape must be B.", "B"),
    # rejections first
    ("Option A is incorrect. Option C is incorrect. Option D is incorrect. The answer is B.", "B"),
    ("A is wrong because it has corners. C has three corners. Hence, the answer is B.", "B"),
    ("It is not A, C or D, so B.", "B"),
    ("Not C but B.", "B"),
    ("We can eliminate A and C. D is a star. Therefore the correct choice is B.", "B"),
    ("Unlike C, B is round.", "B"),
    ("Neither A nor C is round; B is.", "B"),
    ("The answer is not C. It is B.", "B"),
    ("Ruling out A, C and D leaves B.", "B"),
    # only rejections: nothing is stated
    ("Option C is incorrect.", None),
    ("not B", None),
    ("B is wrong", None),
    ("It is not B.", None),
    ("The answer is not B.", None),
    ("The answer isn't C.", None),
    ("B is incorrect because the colour differs.", None),
    ("Neither B nor C.", None),
    ("选项C不对。", None),
    ("不是B。", None),
    # restated before the answer, or alone
    (LIST + "The answer is B.", "B"),
    (LIST + "B", "B"),
    (LIST + "\nAnswer: B", "B"),
    (LIST + "So the correct option is (B).", "B"),
    (LIST, None),
    ("The options are A, B, C and D. I choose B.", "B"),
    ("Options: (A) a blue square (B) a red circle (C) a green triangle (D) a yellow star. Answer: (B)", "B"),
    ("A: has corners, incorrect.\nB: is round, correct.\nC: has corners, incorrect.\nD: a star, incorrect.", "B"),
    ("- A) ✗\n- B) ✓\n- C) ✗\n- D) ✗", "B"),
    ("Let me look at each option.\nA. Wrong, no square.\nC. Wrong, no triangle.\n\n**Answer: B**", "B"),
    # the final statement wins
    ("A... wait, no, B", "B"),
    ("The answer is A. Wait, that is a square. The answer is B.", "B"),
    ("I first thought of C. Actually, it is B.", "B"),
    ("The answer is C. Hmm, let me look again. The shape is round, so the answer is B.", "B"),
    ("C? No, B.", "B"),
    ("Answer: A\n\nCorrection: the answer is B.", "B"),
    ("答案是A。不对，应该是B。", "B"),
    ("The answer is A. Wait, A is wrong.", None),
    # several, or hedged
    ("Both A and B", None),
    ("B or C", None),
    ("A and B", None),
    ("A, B", None),
    ("A, B and C", None),
    ("Either B or C.", None),
    ("The answer is B or C.", None),
    ("The answer could be B, or maybe C.", None),
    ("A和B都对", None),
    ("B或者C", None),
    ("It could be B, but it could also be C.", None),
    ("", None),
    ("I cannot tell.", None),
    ("无法确定", None),
    # words that look like letters
    ("I think the answer is B.", "B"),
    ("I am sure that it is B", "B"),
    ("A closer look shows that the answer is B.", "B"),
    ("I", None),
    ("A person stands there.", None),
    ("a", "A"),
    ("Vitamin C is shown.", None),
    ("It was 20 C outside.", None),
    ("The answer is a mystery.", None),
    ("I don't know.", None),
    # thinking models, tags, JSON
    ("<think>It might be A or C. No, A.</think>B", "B"),
    ("<think>\nThe answer is C? no\n</think>\n\nThe answer is **B**.", "B"),
    ("The answer would be C at first sight.</think>\n\nB", "B"),
    ("<think>It looks like A. The answer is A", None),
    ("<think>Round.</think><answer>B</answer>", "B"),
    ("<answer> (B) </answer>", "B"),
    ("<|begin_of_box|>B<|end_of_box|>", "B"),
    ("B<|im_end|>", "B"),
    ("B</s>", "B"),
    ('{"answer": "B"}', "B"),
    ('```json\n{"answer": "B", "reason": "C is a triangle"}\n```', "B"),
    ("{'answer': 'B'}", "B"),
    ('{"reason": "Option C is a triangle", "answer": "B"}', "B"),
    # Chinese
    ("答案是B。选项C不对。", "B"),
    ("答案：B", "B"),
    ("答案为（B）", "B"),
    ("正确答案是B，而不是C。", "B"),
    ("正确选项是 **B**", "B"),
    ("选B", "B"),
    ("我选择B。", "B"),
    ("应该选B，不选C。", "B"),
    ("故选B。", "B"),
    ("因此，答案选B。", "B"),
    ("根据图片，B选项正确。A选项错误。", "B"),
    ("选项A错误，选项C错误，选项D错误，所以选B。", "B"),
    ("排除A、C、D，答案是B。", "B"),
    ("A、C、D都不符合题意，故选B", "B"),
    ("不是C，而是B。", "B"),
]

# the option's text decides, where it is known
TEXTS: list[tuple[str, str | None]] = [
    ("a red circle", "B"),
    ("A red circle.", "B"),
    ("A RED CIRCLE", "B"),
    ("**a red circle**", "B"),
    ('"A red circle"', "B"),
    ("red circle", "B"),
    ("The picture shows a red circle.", "B"),
    ("It is a red circle, not a green triangle.", "B"),
    ("The answer is a red circle. A blue square has corners.", "B"),
    ("The answer is: a red circle", "B"),
    ("Not a green triangle but a red circle.", "B"),
    ("a red circle or a green triangle", None),
    ("Both a red circle and a blue square", None),
    ("It is not a red circle.", None),
    ("There is no red circle.", None),
    ("Instead of a blue square, there is a red circle.", "B"),
    ("<think>a blue square?</think>a red circle", "B"),
    ('{"answer": "a red circle"}', "B"),
    ("\\boxed{\\text{a red circle}}", "B"),
    ("Answer: a red circle\nExplanation: a blue square would have corners.", "B"),
    ("A red circle is shown, not B.", None),
    ("B. a red circle", "B"),
    ("B a red circle", "B"),
    ("The correct answer is B. a red circle. Option C, a green triangle, is incorrect.", "B"),
    ("答案是a red circle。", "B"),
]


def item(name: str, answer: str, truth: str) -> dict:
    choice = {"prediction": answer, "options": OPTIONS, "answer": truth}
    return {
        "seed": {**choice, "question_type_id": 1},
        "mmbench": choice,
        "scienceqa": choice,
        "mmmu": {**choice, "question_type": "multiple-choice"},
        "mmmu_full": {**choice, "question_type": "multiple-choice", "data_id": "validation_Art_1"},
        "mvbench": {
            "prediction": answer,
            "answer": f"({truth}) {OPTIONS[truth]}",
            "candidates": list(OPTIONS.values()),
            "task_type": "x",
        },
        "milebench": {
            "prediction": answer,
            "kind": "multichoice",
            "answer": OPTIONS[truth],
            "choices": list(OPTIONS.values()),
        },
        "mm_niah": {"prediction": answer, "answer": "ABCD".index(truth)},
        "ocrvqa": {"prediction": answer, "answers": truth},
        "longvqa": {"prediction": answer, "task": "svqa", "answer": truth},
    }[name]


WITH_TEXTS = ("seed", "mmbench", "scienceqa", "mmmu", "mmmu_full", "mvbench", "milebench")
WITHOUT_TEXTS = ("mm_niah", "ocrvqa", "longvqa")


@pytest.mark.parametrize(("answer", "letter"), LETTERS)
def test_letters(answer, letter):
    assert named_letter(answer, OPTIONS) == letter
    assert named_letter(answer, {}, "ABCD") == letter


@pytest.mark.parametrize(("answer", "letter"), TEXTS)
def test_texts(answer, letter):
    assert named_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize("name", [*WITH_TEXTS, *WITHOUT_TEXTS])
def test_every_scorer_of_choices_reads_alike(name):
    scorer = SCORERS[name]
    most = 100.0 if name == "longvqa" else 1.0
    lines = LETTERS + TEXTS if name in WITH_TEXTS else LETTERS
    wrong = [
        (answer, truth, letter)
        for answer, letter in lines
        for truth in OPTIONS
        if scorer.score(item(name, answer, truth), "corrected") != most * (letter == truth)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("vitamin B", "A"),
        ("hepatitis B", "B"),
        ("Vitamin C.", "C"),
        ("It is hepatitis B, not vitamin B.", "B"),
        ("none of them", "D"),
        ("B", "B"),
        ("The answer is B. hepatitis B", "B"),
    ],
)
def test_letters_inside_options(answer, letter):
    assert named_letter(answer, PHOTO) == letter


def test_options_beyond_d():
    many = {letter: f"thing {number}" for number, letter in enumerate("ABCDEFGHI")}
    assert named_letter("I", many) == "I"
    assert named_letter("I think it is F.", many) == "F"
    assert named_letter("The answer is I.", many) == "I"
    assert named_letter("I am not sure.", many) is None
    assert named_letter("The answer is I think E", many) == "E"
