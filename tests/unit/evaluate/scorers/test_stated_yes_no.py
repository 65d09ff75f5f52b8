"""Whether an answer says yes or no, in the styles of real models: doubt is neither, and a later negation decides less.

Every line is tried with POPE and with TabFact of Long-VQA, which read yes and no alike.
"""

from __future__ import annotations

import pytest

from megatron_v2pe.evaluate.scorers import SCORERS
from megatron_v2pe.evaluate.scorers.pope import judge_corrected

ANSWERS = [
    ("Yes", "yes"),
    ("yes.", "yes"),
    ("YES!", "yes"),
    ("**Yes**", "yes"),
    ('"Yes"', "yes"),
    ("Yes\n", "yes"),
    ("Yes, there is a dog in the image.", "yes"),
    ("Yes. There is nothing else in the picture.", "yes"),
    ("Yes, although it is not very clear.", "yes"),
    ("Yes, no doubt.", "yes"),
    ("Yeah, on the left.", "yes"),
    ("There is a dog in the image.", "yes"),
    ("There are two dogs.", "yes"),
    ("I can see a dog next to the sofa.", "yes"),
    ("The image shows a dog.", "yes"),
    ("Certainly. It is on the sofa.", "yes"),
    ("Absolutely!", "yes"),
    ("No doubt, there is a dog.", "yes"),
    ("The answer is yes.", "yes"),
    ("Answer: Yes\nThere is no cat, but a dog.", "yes"),
    ("\\boxed{Yes}", "yes"),
    ("<think>No dog on the left. No. But there is one on the right.</think>Yes", "yes"),
    ("<think>no?</think>\n<answer>Yes</answer>", "yes"),
    ('{"answer": "yes", "reason": "no cat, a dog"}', "yes"),
    ("No... wait, yes, there is one.", "yes"),
    ("I'm not sure, but yes.", "yes"),
    ("Ｙｅｓ", "yes"),
    ("True", "yes"),
    ("是的，图中有一只狗。", "yes"),
    ("是。", "yes"),
    ("有。", "yes"),
    ("图中有一只狗。", "yes"),
    ("答案：是", "yes"),
    ("No", "no"),
    ("no.", "no"),
    ("NO!", "no"),
    ("**No**, there is not.", "no"),
    ("No, there is no dog.", "no"),
    ("There is no dog in the image.", "no"),
    ("There isn't a dog in the image.", "no"),
    ("There are not any dogs.", "no"),
    ("I don't see a dog.", "no"),
    ("I do not see any dog in this picture.", "no"),
    ("The image does not contain a dog.", "no"),
    ("Nope.", "no"),
    ("Not really.", "no"),
    ("Not at all.", "no"),
    ("I don't think so.", "no"),
    ("Of course not.", "no"),
    ("Definitely not.", "no"),
    ("Probably not.", "no"),
    ("The answer is no.", "no"),
    ("Answer: No. Yes would need a dog.", "no"),
    ("\\boxed{\\text{No}}", "no"),
    ("<think>Yes, I see a tail.</think>No", "no"),
    ("Yes... wait, no, that is a cat.", "no"),
    ("There is nothing of the kind.", "no"),
    ("None.", "no"),
    ("False", "no"),
    ("The dog is not present.", "no"),
    ("No, I am not sure what it is, but no dog.", "no"),
    ("没有。", "no"),
    ("不是。", "no"),
    ("否", "no"),
    ("图中没有狗。", "no"),
    ("不，图中只有一只猫。", "no"),
    ("答案是否。", "no"),
    ("", ""),
    ("Not sure", ""),
    ("Not sure.", ""),
    ("I'm not sure.", ""),
    ("I am not certain whether there is a dog.", ""),
    ("I cannot tell", ""),
    ("I can't tell from this image.", ""),
    ("No idea", ""),
    ("No idea.", ""),
    ("No clue", ""),
    ("I have no idea.", ""),
    ("I don't know.", ""),
    ("It is not clear.", ""),
    ("It is unclear whether there is a dog.", ""),
    ("It cannot be determined.", ""),
    ("There is no way to tell.", ""),
    ("There is not enough information to say.", ""),
    ("Maybe", ""),
    ("maybe not, maybe yes", ""),
    ("Yes and no.", ""),
    ("Yes or no", ""),
    ("Hard to say.", ""),
    ("dog", ""),
    ("Unable to determine.", ""),
    ("I'm unable to see the image.", ""),
    ("<think>Is there a dog? No", ""),
    ("不确定", ""),
    ("无法判断。", ""),
    ("不知道", ""),
    ("看不清楚", ""),
]


@pytest.mark.parametrize(("answer", "reading"), ANSWERS)
def test_reading(answer, reading):
    assert judge_corrected(answer) == reading


@pytest.mark.parametrize("truth", ["yes", "no"])
def test_pope_and_tabfact_score_the_reading(truth):
    for answer, reading in ANSWERS:
        score = SCORERS["pope"].score({"prediction": answer, "answer": truth}, "corrected")
        assert score == (reading == truth), answer
        item = {"task": "tabfact", "prediction": answer, "answer": truth.capitalize()}
        assert SCORERS["longvqa"].score(item, "corrected") == 100 * (reading == truth), answer
