"""Images where their placeholder stands, system turns, turns under other names: used, or refused for what they are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.conversation import TEMPLATES, get_template
from megatron_v2pe.data.encode import _with_frames
from megatron_v2pe.data.tokenize import compact_conversation, encode_conversation, with_placeholder
from megatron_v2pe.data.turns import turns_of
from megatron_v2pe.errors import DataError

HUMAN, GPT, SYSTEM = (
    {"from": "human", "value": "what"},
    {"from": "gpt", "value": "a cat"},
    {"from": "system", "value": "Be brief."},
)
ASKED = (("human", "what"), ("gpt", "a cat"))


def of(*turns, **row):
    return turns_of({"conversations": list(turns), **row}, DataError, "a.jsonl:1: ")


@pytest.mark.parametrize("place", range(4))
def test_an_image_stands_where_its_placeholder_does(tokenizer, place):
    """In the first question or a later one, or in an answer: one placeholder, one image."""
    turns = [("human", "one"), ("gpt", "two"), ("human", "three"), ("gpt", "yes")]
    turns[place] = (turns[place][0], "<image>\n" + turns[place][1])
    assert with_placeholder(turns) == turns
    text = compact_conversation(tokenizer, get_template("internlm2-chat"), turns, 1)
    ends = [number for number, token in enumerate(text.ids.tolist()) if token == tokenizer.token_id("<|im_end|>")]
    assert sum(end < text.images[0] for end in ends) == place + 1  # the system turn's, and those before
    learned = [number for start, end in text.supervised.tolist() for number in range(start, end)]
    assert not {text.images[0] - 1, text.images[0], text.images[0] + 1} & set(learned), "no mark of it is learned"


def test_where_no_turn_has_a_placeholder_the_first_question_gets_it():
    assert with_placeholder(ASKED) == [("human", "<image>\nwhat"), ASKED[1]]
    behind = (("system", "Be brief."), *ASKED)
    assert with_placeholder(behind) == [behind[0], ("human", "<image>\nwhat"), ASKED[1]]
    chat = [*ASKED, ("human", "<image>\nand this")]
    assert with_placeholder(chat) == chat, "text first, a picture later"


def test_a_video_stands_where_its_placeholder_does():
    turns = [*ASKED, ("human", "<video>\nwhat happens"), ("gpt", "b")]
    assert _with_frames(turns, 2)[2] == ("human", "Frame1:<image>\nFrame2:<image>what happens")
    assert _with_frames(list(ASKED), 1)[0] == ("human", "Frame1:<image>what")
    with pytest.raises(DataError, match="2 <video> placeholders in the conversation, but one video"):
        _with_frames([("human", "<video> and <video>"), ("gpt", "b")], 2)


@pytest.mark.parametrize(
    ("text", "images", "advice"),
    [
        ("what", 2, "write <image> in the text where each belongs"),
        ("<image> what", 0, "give their paths, or leave the placeholders out"),
        ("<image> what", 2, "the text needs one for each image"),
    ],
)
def test_numbers_that_differ_are_told_with_what_to_do(tokenizer, text, images, advice):
    with pytest.raises(DataError, match=rf"placeholders in the conversation, but {images} images: {advice}"):
        encode_conversation(tokenizer, get_template("internlm2-chat"), [("human", text), ("gpt", "a")], [1] * images, 4)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_turn_takes_the_place_of_the_templates_own(name):
    template = get_template(name)
    plain, other = template.render(ASKED), template.render([("system", " Be brief.\n"), *ASKED])
    assert plain[1:] == other[1:] and plain[0].fixed and not other[0].fixed
    head, own, _ = plain[0].text.partition(template.system_prompt)
    assert own and other[0].text.startswith(head + template.said(" Be brief.\n"))
    assert other[0].text.endswith(template.end + template.separator)
    assert other[0].learned_from is None
    bare = replace(template, system="")
    with pytest.raises(DataError, match="a system turn, but the template .* has none; leave it out"):
        bare.render([("system", "Be brief."), *ASKED])


def test_a_system_turn_is_used_by_training_and_by_generation(tokenizer):
    template = get_template("internlm2-chat")
    ids, labels = encode_conversation(tokenizer, template, [("system", "brief"), *ASKED], [], 4)
    assert tokenizer.decode(ids.tolist()).count("brief") == 1 and "书生" not in tokenizer.decode(ids.tolist())
    prompt, _ = encode_conversation(tokenizer, template, [("system", "brief"), ASKED[0]], [], 4, prompt=True)
    assert ids[: len(prompt)].tolist() == prompt.tolist()
    assert (labels[: len(prompt)] == -100).all()


def test_turns_under_other_names():
    assert of(HUMAN, GPT) == ASKED
    assert of({"role": "user", "content": "what"}, {"role": "assistant", "content": "a cat"}) == ASKED
    assert of({"from": "user", "value": "what"}, {"role": "GPT", "content": "a cat"}) == ASKED
    for name in ("messages", "conversation"):
        assert turns_of({name: [HUMAN, GPT]}, DataError) == ASKED
    assert of(HUMAN, GPT, messages=[HUMAN, GPT]) == ASKED
    assert turns_of({"conversations": []}, DataError) is None


def test_system_turns():
    with_system = (("system", "Be brief."), *ASKED)
    assert of(SYSTEM, HUMAN, GPT) == with_system
    assert of({"role": "system", "content": "Be brief."}, HUMAN, GPT) == with_system
    assert of(HUMAN, GPT, system="Be brief.") == with_system
    assert of(SYSTEM, HUMAN, GPT, system="Be brief.") == with_system
    assert of({"from": "system", "value": " "}, HUMAN, GPT, system="") == ASKED


@pytest.mark.parametrize(
    ("turns", "row", "told"),
    [
        ([HUMAN, SYSTEM, GPT], {}, "turn 2 is a system turn; there can be one, as the first turn"),
        ([SYSTEM, SYSTEM, HUMAN, GPT], {}, "turn 2 is a system turn"),
        ([SYSTEM, HUMAN, GPT], {"system": "Be long."}, "the field 'system' and the system turn .* differ"),
        ([HUMAN, GPT], {"system": ["a"]}, "system: found a list, expected text"),
        ([SYSTEM, GPT, HUMAN, GPT], {}, "behind the system turn comes an answer"),
        ([SYSTEM], {}, "field 'conversations' holds no question"),
        ([HUMAN, {"from": "tool", "value": "x"}], {}, "turn 2 is from 'tool'; turns are from 'human'"),
        ([HUMAN, {"role": "function_call", "content": "x"}], {}, "turn 2 is from 'function_call'"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}, GPT], {}, "write the parts as one text"),
        ([HUMAN, {**GPT, "loss": False}], {}, "'loss' says not to learn it"),
        ([HUMAN, {**GPT, "weight": 0}], {}, "'weight' says not to learn it"),
        ([HUMAN, GPT], {"messages": [HUMAN]}, "conversations and messages hold different turns"),
        ([HUMAN, {"from": "gpt"}], {}, "turn 2: 'value': is missing"),
    ],
)
def test_what_is_not_understood_is_named(turns, row, told):
    with pytest.raises(DataError, match=f"^a.jsonl:1: .*{told}"):
        of(*turns, **row)


def test_questions_and_answers_are_not_turns():
    with pytest.raises(DataError, match="'conversations' is missing or empty; 'question', 'answer' are not read"):
        Dataset("d", "a.jsonl").parse(json.dumps({"question": "a", "answer": "b"}).encode(), 1)
