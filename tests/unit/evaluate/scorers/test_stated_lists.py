"""Which list an answer states: found whatever other brackets stand there, in either quotes; the final one counts."""

from __future__ import annotations

import pytest

from megatron_v2pe.evaluate.scorers import SCORERS

# (truth, answer, share of places that are right)
COUNTS = [
    ([2, 3], "[2, 3]", 1),
    ([2, 3], "[2, 3].", 1),
    ([2, 3], "**[2, 3]**", 1),
    ([2, 3], "`[2, 3]`", 1),
    ([2, 3], "[2,3]\n", 1),
    ([2, 3], '["2", "3"]', 1),
    ([2, 3], "['2', '3']", 1),
    ([2, 3], "[“2”, “3”]", 1),
    ([2, 3], "[2, 3,]", 1),
    ([2, 3], "[2.0, 3.0]", 1),
    ([2, 3], '["two", "three"]', 1),
    ([2, 3], "[two, three]", 1),
    ([2, 3], "［２，３］", 1),
    ([2, 3], "[2，3]", 1),
    ([2, 3], "[2、3]", 1),
    ([2, 3], "The counts are [2, 3].", 1),
    ([2, 3], "The counts are [2, 3] (see image [1]).", 1),
    ([2, 3], "Image [1] shows two, image [2] shows three. The counts are [2, 3].", 1),
    ([2, 3], "In [1] there are 2 and in [2] there are 3, so: [2, 3]", 1),
    ([2, 3], "[2, 3] [1][2]", 1),
    ([2, 3], "As described in [1, 5], the answer is [2, 3].", 1),
    ([2, 3], "The answer is [2, 3], as described in [1, 5].", 1),
    ([2, 3], "{not json} but [2, 3]", 1),
    ([2, 3], "[note] The list is [2, 3]", 1),
    ([2, 3], "[see below]\n[2, 3]\n(end]", 1),
    ([2, 3], "```json\n[2, 3]\n```", 1),
    ([2, 3], "```\n[2, 3]\n```", 1),
    ([2, 3], "```python\ncounts = [2, 3]\n```", 1),
    ([2, 3], 'Sure! Here it is:\n```json\n{"counts": [2, 3]}\n```\nLet me know.', 1),
    ([2, 3], "{'counts': [2, 3]}", 1),
    ([2, 3], '{"image 1": [2], "image 2": [3]}', 1),
    ([2, 3], '{"image 1": 2, "image 2": 3}', 1),
    ([2, 3], '{"answer": "[2, 3]"}', 1),
    ([2, 3], "\\boxed{[2, 3]}", 1),
    ([2, 3], "$[2, 3]$", 1),
    ([2, 3], "<think>Perhaps [1, 3]? Or [2, 2].</think>[2, 3]", 1),
    ([2, 3], "<think>[2, 3]</think>\n<answer>[2, 3]</answer>", 1),
    ([2, 3], "<think>I count [2, 3]", 0),
    ([2, 3], "[1, 3] ... wait, that is wrong. [2, 3]", 1),
    ([2, 3], "[1, 3]? No. Final answer: [2, 3]", 1),
    ([2, 3], "输出：[2, 3]", 1),
    ([2, 3], "答案是[2, 3]。见[1]。", 1),
    ([2, 3], "图[1]中有2个，图[2]中有3个，所以是[2, 3]", 1),
    ([2, 3], "[[2, 3]]", 1),
    ([2, 3], "[2, 4]", 0.5),
    ([2, 3], "[2, 3, 4]", 2 / 3),
    ([2, 3], "[2]", 0.5),
    ([2, 3], "[true, 3]", 0.5),
    ([2, 3], "2, 3", 0),
    ([2, 3], "I see [nothing].", 0),
    ([2, 3], "[]", 0),
    ([2, 3], "", 0),
    ([2, 3], "[2, 3", 0),
    ([3], "The count is [3].", 1),
    ([3], "As in [1], there are three: [3]", 1),
    ([3], "The answer is [3] as shown in [1].", 1),
    (["1", "0"], "['1', '0']", 1),
    ([0, 0, 1], "The numbers are [0, 0, 1] for images [A], [B] and [C].", 1),
]


@pytest.mark.parametrize(("truth", "answer", "share"), COUNTS)
def test_counts(truth, answer, share):
    item = {"task": "counting-text-val", "answer": truth, "prediction": answer}
    assert SCORERS["mm_niah"].score(item, "corrected") == pytest.approx(share)
