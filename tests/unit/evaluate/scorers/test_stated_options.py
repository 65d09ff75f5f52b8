"""Which option an answer states that explains itself: in the styles of real models, with the right reading.

A rejected option and one that is only restated are not the answer; a stated answer wins over a later mention; what
stays open is no answer. Every line is tried with every scorer that reads letters.
"""

from __future__ import annotations

import pytest

from megatron_v2pe.evaluate.scorer_names import SCORERS
from megatron_v2pe.evaluate.scorers.stated_option import named_letter

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
    # a second set, of other words for the same
    ("The correct answer is:\n\n**B. a red circle**", "B"),
    ("Looking at the image, I can see a circle that is red. Therefore, the answer is **B**.", "B"),
    (
        "Looking at the options:\n"
        "\n"
        "A. a blue square - This is incorrect because there is no square.\n"
        "B. a red circle - This matches the image.\n"
        "C. a green triangle - Not present.\n"
        "D. a yellow star - Not present.\n"
        "\n"
        "Therefore, the correct answer is B.",
        "B",
    ),
    (
        "Looking at the options:\n"
        "\n"
        "A. a blue square - incorrect.\n"
        "B. a red circle - This is the correct answer.\n"
        "C. a green triangle - incorrect.\n"
        "D. a yellow star - incorrect.",
        "B",
    ),
    ("Option A: incorrect.\nOption B: correct.\nOption C: incorrect.\nOption D: incorrect.", "B"),
    ("**Option B** is the best description. **Option A** mentions a square, which is wrong.", "B"),
    ("The image shows a red circle, so option B is correct.", "B"),
    ("The image shows a circle in red, which corresponds to option B.", "B"),
    ("The shape is a red circle, which corresponds to option B.", "B"),
    ("B is correct, as the shape is round. D would be a star.", "B"),
    ("It's B", "B"),
    ("It's option (b).", "B"),
    ("that would be B", "B"),
    ("My choice: B", "B"),
    ("Choice: (B)", "B"),
    ("Option B", "B"),
    ("option b", "B"),
    ("Letter B", "B"),
    ("Choose B", "B"),
    ("Response: B", "B"),
    ("Final Answer: \\boxed{B}", "B"),
    ("**Final Answer**\n\\boxed{B}", "B"),
    ("Answer:B", "B"),
    ("ANSWER: B", "B"),
    ("answer is: B", "B"),
    ('The answer is "B".', "B"),
    ("The answer is '(B)'", "B"),
    ("B is the answer", "B"),
    ("B it is.", "B"),
    ("I believe B is right.", "B"),
    ("Among the choices, only B matches.", "B"),
    ("A is not correct. B is correct.", "B"),
    ("I'd rule out A and D. Between B and C, B is closer.", "B"),
    ("Not A. Not C. Not D. So the answer has to be B.", "B"),
    ("The answer is definitely not A or C. I'd say B.", "B"),
    ("Since the shape is round, A, C and D can be eliminated, leaving B.", "B"),
    ("A - no\nB - yes\nC - no\nD - no", "B"),
    ("A: No\nB: Yes\nC: No\nD: No", "B"),
    ("A. ❌\nB. ✅\nC. ❌\nD. ❌", "B"),
    ("The answer is B, rather than C or D.", "B"),
    ("The answer is B (not C).", "B"),
    ("The correct choice isn't C; it's B.", "B"),
    ("While C is tempting, B is the correct answer.", "B"),
    ("Although option A looks plausible, the correct option is B.", "B"),
    ("B, because A, C, and D are all wrong", "B"),
    ("B (A is wrong)", "B"),
    ("B/C", None),
    ("B, C", None),
    ("B & C", None),
    ("A, B, C, D", None),
    ("All of the above", None),
    ("ABCD", None),
    ("None of the options", None),
    ("There is not enough information to choose between B and C.", None),
    ("I am unable to choose.", None),
    ("Sorry, I can't help with that.", None),
    ("As an AI model, I cannot view images.", None),
    ("The answer is E.", None),
    ("A or B, probably B", "B"),
    ("I'm torn between B and C, but I'll go with B.", "B"),
    ("Initially I thought C, but on closer look it's B.", "B"),
    ("C... no, B.", "B"),
    ("C — no, wait — B", "B"),
    ("C. Sorry, B.", "B"),
    ("Answer: C. Correction: B", "B"),
    ("The answer is C. Actually, the answer is B.", "B"),
    ("Answer: C\n\nAnswer: B", "B"),
    ("正确答案：B. a red circle", "B"),
    ("选项B是正确的。", "B"),
    ("B是正确答案。", "B"),
    ("答案应该是B", "B"),
    ("因此选B", "B"),
    ("应选B", "B"),
    ("我认为是B", "B"),
    ("答案为：B", "B"),
    ("答案：B。解析：A项错误，C项错误。", "B"),
    ("B 正确", "B"),
    ("A错误，B正确，C错误，D错误。", "B"),
    ("选项B符合题意，选项C不符合题意", "B"),
    ("不能选A，应该选B", "B"),
    ("A不对，C也不对，所以是B。", "B"),
    ("选A还是选B？选B。", "B"),
    ("B项", "B"),
    ("（B）a red circle", "B"),
    ("B：红色圆形", "B"),
    ("图中显示的是圆形，所以正确答案是B选项。", "B"),
    ("A、B都有可能", None),
    ("可能是B，也可能是C", None),
    ("<think>\nOkay, so A is... no. B? C?\n</think>\n\n**Answer: B**\n\nC is wrong since it is a triangle.", "B"),
    ("<thinking>A</thinking>\nB", "B"),
    ('{"answer": "B", "explanation": "A is wrong"}', "B"),
    ('{"choice": "B"}', "B"),
    ("{answer: B}", "B"),
    ('["B"]', "B"),
    ('{"Answer": "B. a red circle"}', "B"),
    ("Answer: B.\n\nA: wrong\nC: wrong\nD: wrong", "B"),
    ("The best answer is B. a red circle. C. a green triangle is not shown.", "B"),
    ("The circle is red, not blue (A), not green (C).", None),
    ("I would say the answer is B because neither A nor C nor D fits", "B"),
    ("Let's go with B.", "B"),
    ("Going with B here.", "B"),
    ("Picking B", "B"),
    ("Option C can be dismissed, option D too; option A has corners. Option B remains.", "B"),
    ("The answer cannot be A, since that's a square. It must be B.", "B"),
    ("If it were green, the answer would be C. But it is red, so the answer is B.", "B"),
    ("a circle", None),
    ("A red circle (option B)", "B"),
    ("The answer: B) a red circle", "B"),
    ("I choose option B: a red circle", "B"),
    ("Ans: B", "B"),
    ("Ans. B", "B"),
    ("(B) a red circle is the right answer, while (C) is wrong.", "B"),
    ("Correct answer is 'B'", "B"),
    ("The correct letter is B.", "B"),
    ("The correct answer's letter is B.", "B"),
    ("B!!!", "B"),
    ("B??", "B"),
    ("B :)", "B"),
    ("  b  ", "B"),
    ("b.", "B"),
    ("b) a red circle", "B"),
    ("[b]", "B"),
    ("the answer is option a", "A"),
    ("choice a", "A"),
    ("(a)", "A"),
    ("a.", "A"),
    ("A because it has four corners", "A"),
    ("A is correct", "A"),
    ("It is A.", "A"),
    ("I choose A", "A"),
    ("A. a blue square", "A"),
    ("A，因为它有四个角", "A"),
    ("A star is yellow, so D.", "D"),
    ("A good guess would be D", "D"),
    ("The answer is B) 3 apples", "B"),
    ("B) 3 apples", "B"),
    ("B. Because image A shows nothing", "B"),
    ("The second one (B).", "B"),
    ("(C) is wrong; (B) fits.", "B"),
    ("Answer: the option B", "B"),
    ("The image corresponding to the needle is B.", "B"),
    ("picture D", None),
    ("D: picture D", "D"),
    ("Both", None),
    ("The correct answer is A. The image is a blue square.", "A"),
    ("The answer is a.", "A"),
    ("Let me think. A? B? It is C.", "C"),
    ("I think it's D because I see a star.", "D"),
    ("A+", None),
    ("C++", None),
    ("grade A", None),
    ("Plan B", None),
    ("Type B blood", None),
    ("the letter B", "B"),
    ("选择B选项", "B"),
    ("答案选择：B", "B"),
    ("答案是：**B**", "B"),
    ("答案：\nB", "B"),
    ("【答案】B", "B"),
    ("【答案】B【解析】A错误", "B"),
    ("参考答案：B", "B"),
    ("B\n\n解析：A错误，C错误", "B"),
    ("由图可知，选项 B 正确，选项 C 错误。", "B"),
    ("A选项不正确，B选项正确", "B"),
    ("不是A也不是C，是B", "B"),
    ("排除A，排除C，排除D，选B", "B"),
    ("只有B符合", "B"),
    ("B最合适", "B"),
    ("我会选B而不是C", "B"),
    ("比起C，B更合适", "B"),
    ("与C不同，B是圆形", "B"),
    ("The answer is B.\n\nNote: if the shape were a triangle, the answer would be C.", "B"),
    ("B is the correct answer because the others (A, C, D) are incorrect.", "B"),
    ("Of the four options (A, B, C, D), B is correct.", "B"),
    ("Step 1: A is out. Step 2: C is out. Step 3: D is out. => B", "B"),
    ("=> B", "B"),
    ("-> B", "B"),
    ("**(B)**", "B"),
    ("*B*", "B"),
    ("__B__", "B"),
    ("<b>B</b>", "B"),
    ("B\r\n", "B"),
    ("Answer:\tB", "B"),
    ("Answer is (b)", "B"),
    ("Therefore the correct answer is option B: a red circle.", "B"),
    ("Hence B", "B"),
    ("Thus, (B).", "B"),
    ("In conclusion, B.", "B"),
    ("Overall, I'd say B", "B"),
    ("Considering A, B, C and D, the best is B.", "B"),
    ("A. a blue square B. a red circle C. a green triangle D. a yellow star\nAnswer: B", "B"),
    ("The possible answers are A, B, C, or D. The answer is B.", "B"),
    ("Answer with the option's letter: B", "B"),
    ("You asked for the letter only: B.", "B"),
    ("B. I am sure.", "B"),
    ("B, I think", "B"),
    ("B I think", "B"),
    ("I guess B", "B"),
    ("Probably B", "B"),
    ("Maybe B", "B"),
    ("B?", "B"),
    ("Not sure, but B", "B"),
    ("Could be B", "B"),
    ("Option B is not correct.", None),
    ("B does not match.", None),
    ("B can't be right.", None),
    ("Anything but B", None),
    ("Everything except B", None),
    ("all but B", None),
    ("The answer is neither A nor B.", None),
    ("C isn't it, B isn't it either.", None),
    ("The answer is not A, it's not C, and it's not D.", None),
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
    ("B. a red circle\n\nA. a blue square is wrong, C. a green triangle is wrong", "B"),
    ("a green triangle is incorrect; the correct one is a red circle", "B"),
    ("It's not a blue square. It's a red circle.", "B"),
    ("The object isn't a green triangle, it is a red circle.", "B"),
    ("This is a red circle. Unlike a blue square, it has no corners.", "B"),
    ("A red circle is what I see", "B"),
    ("A blue square? No, it is a red circle.", "B"),
    ("A blue square", "A"),
    ("a blue square is the answer", "A"),
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


COLOURS = {"A": "blue", "B": "red", "C": "green", "D": "yellow"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Answer: B / Explanation: choice C does not fit.", "B"),
        ("Answer: B. Explanation: choice C does not fit.", "B"),
        ("答案是B。选项C不对。", "B"),
        ("Red", "B"),
        ("red.", "B"),
        ("The colour is red, unlike green.", "B"),
        ("It's red rather than green or blue.", "B"),
        ("It is not blue; it is red.", "B"),
        ("not blue, not green, but red", "B"),
        ("red or green", None),
        ("The circle is red. Blue is incorrect, green is incorrect.", "B"),
        ("The answer is red.", "B"),
        ("blue? No, red.", "B"),
        ("I'd say it's red", "B"),
        ("红色", None),
        ("B. red\nC. green is wrong", "B"),
        ("The circle is red (B), while the square is blue (A).", None),
        (
            "The correct answer is **B. "
            "red**. "
            "The other options (A. "
            "blue, C. "
            "green, D. "
            "yellow) are not shown in the image.",
            "B",
        ),
        ("Based on the picture, the circle is clearly red. Hence the correct option is: B", "B"),
        (
            "The question asks for the colour of the circle. "
            "Option A (blue) is incorrect. "
            "Option B (red) is correct. "
            "Option C (green) is incorrect. "
            "Option D (yellow) is incorrect.",
            "B",
        ),
        (
            "Option A: Blue - This is not the colour.\n"
            "Option B: Red - This is the colour.\n"
            "Option C: Green - This is not the colour.\n"
            "Option D: Yellow - This is not the colour.\n"
            "\n"
            "So the answer is Option B.",
            "B",
        ),
        ("1. A (blue): wrong\n2. B (red): right\n3. C (green): wrong\n4. D (yellow): wrong", "B"),
        ("Sure! The answer is B.", "B"),
        ("Of course. B.", "B"),
        ("Answer B", "B"),
        ("answer B is right", "B"),
        ("Answer (B) red", "B"),
        ("The answer given the options is B.", "B"),
        ("The answer, given the image, is B.", "B"),
        ("The right answer here is B", "B"),
        ("The option that matches is B.", "B"),
        ("The most suitable option is B.", "B"),
        ("Most likely B.", "B"),
        ("I'm confident it's B.", "B"),
        ("B, definitely.", "B"),
        ("B is my answer", "B"),
        ("B is what I'd choose", "B"),
        ("B would be my pick.", "B"),
        ("My pick is B, as A and C look off", "B"),
        ("I select option B", "B"),
        ("I'll choose (B)", "B"),
        ("We choose B.", "B"),
        ("you should choose B", "B"),
        ("select: B", "B"),
        ("I wouldn't choose C. I'd choose B.", "B"),
        ("I would not pick A.", None),
        ("don't choose C", None),
        ("Don't pick A, pick B", "B"),
        ("The answer is C? No. The answer is B.", "B"),
        ("The answer isn't B; the answer is C.", "C"),
        ("It isn't B, is it? It's C.", "C"),
        ("First guess: A. Final: B.", "B"),
        ("Final: B", "B"),
        ("A -> wrong, B -> right, C -> wrong", "B"),
        ("B\nB\nB", "B"),
        ("B. red\nB. red", "B"),
        ("B B B", "B"),
        ("BB", None),
        ("A. blue", "A"),
        ("(A) blue", "A"),
        ("A: blue", "A"),
        ("A) blue is the answer", "A"),
        ("A blue circle", "A"),
        ("D. I can't see the others", "D"),
        ("D (none of A, B, C)", "D"),
        ("答案是 A。", "A"),
        ("A。", "A"),
        ("选 A", "A"),
        ("应该是A，因为B和C不对", "A"),
        ("我觉得选A比选B好", "A"),
        ("A比B更合适", "A"),
        ("不是A、B、C，而是D", "D"),
        ("答案不是C，是B", "B"),
        ("答案并不是C，而是B。", "B"),
        ("首先排除A。其次排除C和D。最终答案：B", "B"),
        ("选项分析：\nA. 错误。\nB. 正确。\nC. 错误。\nD. 错误。\n答案：B", "B"),
        ("选项分析：\nA. 错误。\nB. 正确。\nC. 错误。\nD. 错误。", "B"),
        ("A、不对\nB、对\nC、不对\nD、不对", "B"),
    ],
)
def test_options_of_one_word(answer, letter):
    assert named_letter(answer, COLOURS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Yes", "A"),
        ("no, there is none", "B"),
        ("Yes, not a dog but a cat", "A"),
        ("(B) No", "B"),
        ("The answer is no.", "B"),
        ("Not sure", None),
        ("A. Yes\nB. No\nAnswer: B", "B"),
        ("B. No, because A. Yes is wrong", "B"),
        ("It is not true.", None),
    ],
)
def test_options_that_are_yes_and_no(answer, letter):
    assert named_letter(answer, {"A": "Yes", "B": "No"}) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A. not visible", "A"),
        ("B. incorrect", "B"),
        ("B) wrong way", "B"),
        ("C. No parking", "C"),
        ("D. Not sure", "D"),
        ("(A) False", "A"),
        ("A: not a dog", "A"),
    ],
)
def test_a_negation_that_is_the_option_s_text_rejects_nothing(answer, letter):
    assert named_letter(answer, {}, "ABCD") == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("There are 13 apples.", "B"),
        ("There are 3 apples, not 13.", "A"),
        ("I count 3 + 10 = 13 apples. The answer is 13.", "B"),
        ("3.", "A"),
        ("3.5", None),
        ("30%", None),
    ],
)
def test_options_that_are_numbers(answer, letter):
    assert named_letter(answer, {"A": "3", "B": "13", "C": "30", "D": "0"}) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The man isn't moving.", "C"),
        ("C. The man isn't moving", "C"),
        ("The correct answer is D. It cannot be determined from the image.", "D"),
        ("The man is not walking; a man is running", "B"),
        ("B: A man is running, he is not walking", "B"),
    ],
)
def test_options_that_are_sentences(answer, letter):
    options = {"A": "A man is walking", "B": "A man is running", "C": "The man isn't moving"}
    assert named_letter(answer, {**options, "D": "It cannot be determined"}) == letter
