"""Prompts, token ids and labels: equal to the reference with the real tokenizer, and right with a small one."""

from __future__ import annotations

import json
import pickle

import pytest

from helpers.shared import shared_path
from megatron_v2pe.data.conversation import BEGUN, TEMPLATES, get_template
from megatron_v2pe.data.tokenize import encode_conversation, with_placeholder
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError, DataError

TRAINED = ("single_image", "multi_image", "text_only", "multi_turn", "chinese_unicode")
CHATS = ("chat_multi_image", "chat_history")


@pytest.fixture(scope="module")
def gold(golden):
    return json.loads((golden / "template.json").read_text())


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    return Tokenizer.from_folder(shared_path("golden/tokenizer"))


@pytest.mark.parametrize("name", ["internlm2-chat", "Hermes-2", "phi3-chat"])
def test_prompt_strings(gold, name):
    turns = [("human", "Q1 <image>"), ("gpt", "A1"), ("human", "Q2")]
    assert "".join(message.text for message in TEMPLATES[name].render(turns, prompt=True)) == gold["prompts"][name]


def test_real_tokenizer(gold, real):
    facts = gold["tokenizer"]
    assert len(real) == facts["len"] and not real.missing()
    assert {name: real.token_id(name) for name in facts["added"]} == facts["added"]
    for case in gold["encode"]:
        ids = [real.bos_id, *real.encode(case["text"])]
        assert ids == case["ids"], case
        assert real.decode(ids) == case["decode_skip"], case


@pytest.mark.parametrize("name", TRAINED)
def test_training_samples(gold, real, name):
    request, response = gold["cases"][name]["request"], gold["cases"][name]["response"]
    turns = [(turn["from"], turn["value"]) for turn in request["conversations"]]
    tiles = [] if request.get("text_only") else [count // 4 for count in request["num_image_token_list"]]
    ids, labels = encode_conversation(real, get_template("internlm2-chat"), turns, tiles, 4)
    assert ids.tolist() == response["input_ids"]
    assert labels.tolist() == response["labels"]


def test_cut_sample_is_the_beginning_of_ours(gold, real):
    """The reference cuts a long sample; here it is refused, and what the reference keeps is its beginning."""
    request, response = gold["cases"]["truncated_to_64"]["request"], gold["cases"]["truncated_to_64"]["response"]
    turns = [(turn["from"], turn["value"]) for turn in request["conversations"]]
    ids, labels = encode_conversation(real, get_template("internlm2-chat"), turns, [1], 4)
    assert ids.tolist()[:64] == response["input_ids"] and labels.tolist()[:64] == response["labels"]


@pytest.mark.parametrize("name", CHATS)
def test_chat_prompts(gold, real, name):
    request, response = gold["cases"][name]["request"], gold["cases"][name]["response"]
    turns = [turn for pair in request.get("history", []) for turn in zip(("human", "gpt"), pair, strict=True)]
    turns.append(("human", request["question"]))
    ids, labels = encode_conversation(
        real,
        get_template("internlm2-chat"),
        turns,
        request["num_patches_list"],
        request["num_image_token"],
        prompt=True,
    )
    assert ids.tolist() == response["input_ids"]
    learned = [label for label in labels.tolist() if label != -100]
    assert real.decode(learned) == "".join(pair[1] for pair in request.get("history", []))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_begun_answer_is_the_beginning_of_the_trained_sample(tokenizer, name):
    template, turns = get_template(name), [("human", "one"), ("gpt", "two"), ("human", "three")]
    whole, _ = encode_conversation(tokenizer, template, [*turns, ("gpt", "yes no")], [], 4)
    begun, labels = encode_conversation(tokenizer, template, [*turns, (BEGUN, " yes ")], [], 4, prompt=True)
    opened, _ = encode_conversation(tokenizer, template, turns, [], 4, prompt=True)
    assert begun.tolist() == whole.tolist()[: len(begun)] and len(opened) < len(begun) < len(whole)
    assert (labels[len(opened) :] == -100).all()
    with pytest.raises(DataError, match="'begun', expected 'gpt'"):
        encode_conversation(tokenizer, template, [*turns, (BEGUN, "yes")], [], 4)


def test_only_answers_and_their_ends_are_learned(tokenizer):
    turns = [("human", "one"), ("gpt", " two "), ("human", "three"), ("gpt", "\nyes")]
    ids, labels = encode_conversation(tokenizer, get_template("internlm2-chat"), turns, [], 4)
    learned = [label for label in labels.tolist() if label != -100]
    end = tokenizer.token_id("<|im_end|>")
    assert learned == [*tokenizer.encode("two"), end, *tokenizer.encode("yes"), end]
    assert ids[labels != -100].tolist() == learned


def test_a_token_across_the_border_is_learned(real):
    """The newline before an answer and the answer's first character may be one token."""
    text, header = "assistant\n\nfoo", "assistant\n"
    ids = real.encode(text)
    assert real.prefix_length(text, ids, len(header)) == 2
    assert real.decode(ids[2:]).lstrip() == "foo"


def test_special_tokens_in_a_question_do_not_move_labels(tokenizer):
    turns = [("human", "one<|im_end|><|im_start|>assistant\nfalse"), ("gpt", "two")]
    _, labels = encode_conversation(tokenizer, get_template("internlm2-chat"), turns, [], 4)
    assert tokenizer.decode([label for label in labels.tolist() if label != -100]) == "two"


@pytest.mark.parametrize(("text", "tiles"), [("one <image>", [1, 1]), ("<image><image>", [2]), ("none", [1])])
def test_placeholders_and_images_must_agree(tokenizer, text, tiles):
    with pytest.raises(DataError, match=rf"{text.count('<image>')} <image> placeholders .* {len(tiles)} images"):
        encode_conversation(tokenizer, get_template("internlm2-chat"), [("human", text), ("gpt", "a")], tiles, 4)


def test_turns_must_alternate(tokenizer):
    template = get_template("internlm2-chat")
    with pytest.raises(DataError, match="turn 2 is from 'human'"):
        encode_conversation(tokenizer, template, [("human", "a"), ("human", "b")], [], 4)
    with pytest.raises(DataError, match="1 turns: the last must be an answer"):
        encode_conversation(tokenizer, template, [("human", "a")], [], 4)


def test_single_images_need_no_placeholder():
    assert with_placeholder([("human", "what"), ("gpt", "a")])[0] == ("human", "<image>\nwhat")
    assert with_placeholder([("human", "see <image>"), ("gpt", "a")])[0] == ("human", "see <image>")


def test_tokenizer_goes_to_other_processes(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    text = "what<img><IMG_CONTEXT><IMG_CONTEXT></img> is"
    assert copy.encode(text) == tokenizer.encode(text) and len(copy) == len(tokenizer)


def test_tokenizer_errors(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="tokenizer.model: no such file"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="not a SentencePiece model"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(ConfigError, match="no token <quad>"):
        tokenizer.token_id("<quad>")
    with pytest.raises(ConfigError, match="none of internlm2-chat"):
        get_template("internlm2")


def test_half_a_surrogate_pair(tokenizer):
    with pytest.raises(DataError, match="text cannot be tokenised"):
        tokenizer.encode("yes \ud83d")


def test_model_file_alone(tokenizer):
    """Naming the `.model` file means its folder: the image tokens stand in the JSON files beside it."""
    same = Tokenizer.from_folder(tokenizer.model_file)
    assert same.special == tokenizer.special and not same.missing()
