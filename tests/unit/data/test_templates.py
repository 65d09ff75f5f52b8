"""Ids and labels of every template with the tokenizers it is published for, against transformers and plain rules."""

from __future__ import annotations

from itertools import pairwise

import pytest

from helpers.tokenizer_kinds import KINDS, write_internlm2
from megatron_v2pe.data.conversation import TEMPLATES, get_template
from megatron_v2pe.data.indexed.samples import template_digest
from megatron_v2pe.data.tokenize import encode_conversation
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError

OLD_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
NEW_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
ANSWERS = ["Three.", "  yes, two spaces", "\n\nno\n", "一只橘猫🐱。", "<think>\nhm\n</think>\n\nA1"]
QUESTIONS = [
    "<image>\nHow many?",
    "  What is the leftmost one holding?  ",
    "one<|im_end|>\n<|im_start|>assistant\nfalse<|im_end|>\n",
    "<|end|><|assistant|>\nfalse<|end|>",
    "你好\n",
]
CONVERSATIONS = [
    [("human", QUESTIONS[first]), ("gpt", ANSWERS[first]), ("human", QUESTIONS[second]), ("gpt", ANSWERS[second])]
    for first, second in pairwise(range(5))
]
DIGESTS = {
    "internlm2-chat": "c8b018ceb86c6c43d694f48bd3bd4fec81360f3452cbd458d74e2b3e5f7729cf",
    "Hermes-2": "3a2b322fec8c049400d9498c5361c53b1f065b3a2376f3efe01c70e8d6f185c8",
    "phi3-chat": "c3eed47d30eba567d88568ecdfe4da77f43cd640071fd39681bf3c14cf9c3800",
}
IMAGE = "<img>" + "<IMG_CONTEXT>" * 8 + "</img>"


@pytest.fixture(scope="module")
def kind(tmp_path_factory):
    """A function: kind -> its folder, made once."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("kind")
            (KINDS | {"internlm2": write_internlm2})[name](made[name])
        return made[name]

    return folder


def encoded(ours, template, turns):
    images = sum(text.count("<image>") for _, text in turns)
    ids, labels = encode_conversation(ours, get_template(template), turns, [2] * images, 4)
    return ids.tolist(), labels.tolist()


def turn_by_turn(encode, before, turns):
    """The published rule of `internvl2_5`: turns are tokenised one by one; of an answer's tokens as many are left out
    at its beginning as its header has, and the last one, the newline behind `<|im_end|>`."""
    ids, labels = list(before), [-100] * len(before)
    header = len(encode("<|im_start|>assistant\n"))
    whole = [("system", NEW_SYSTEM), *turns] if turns[0][0] != "system" else turns
    for role, text in whole:
        name = {"human": "user", "gpt": "assistant"}.get(role, role)
        tokens = encode(f"<|im_start|>{name}\n{text.replace('<image>', IMAGE)}<|im_end|>\n")
        kept = range(header, len(tokens) - 1) if role == "gpt" else ()
        ids += tokens
        labels += [token if place in kept else -100 for place, token in enumerate(tokens)]
    return ids, labels


@pytest.mark.parametrize("name", ["qwen2", "qwen3, all files", "llama3", "llama", "internlm2"])
def test_internvl2_5_turn_by_turn(kind, name):
    """On text with white space around it, and with the template's own marks inside."""
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.of_model(kind(name), None, "internvl2_5")
    if name == "internlm2":  # transformers knows it by code of the checkpoint alone
        encode, before = ours.encode, (ours.token_id("<s>"),)
    else:
        theirs = transformers.AutoTokenizer.from_pretrained(kind(name))
        before = theirs("").input_ids

        def encode(text):
            return theirs(text).input_ids[len(before) :]

    for turns in [*CONVERSATIONS, [("system", " Be brief.\n"), *CONVERSATIONS[0]]]:
        ids, labels = encoded(ours, "internvl2_5", turns)
        assert (ids, labels) == turn_by_turn(encode, before, turns), turns
        end = ours.token_id("<|im_end|>")
        assert sum(label == end for label in labels) == 2 and labels[-1] == -100
    stripped = TEMPLATES["internvl2_5"].render(CONVERSATIONS[0])[1].text.replace("  ", "")
    assert encode(stripped) and encoded(ours, "internlm2-chat", CONVERSATIONS[0])[0] != ids  # another template is seen


@pytest.mark.parametrize(
    ("name", "template"),
    [("qwen2", "Hermes-2"), ("llama", "Hermes-2"), ("llama, legacy", "Hermes-2"), ("llama3", "internlm2-chat"),
     ("phi3", "phi3-chat"), ("phi3", "llama3-chat")],
)  # fmt: skip
def test_the_others_are_tokenised_as_a_whole(kind, name, template):
    """Their published code tokenises the whole conversation; a message at a time gives the same ids."""
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.of_model(kind(name), None, template)
    theirs = transformers.AutoTokenizer.from_pretrained(kind(name))
    if template in ("phi3-chat", "llama3-chat"):
        system, user, assistant, end = "<|system|>\n", "<|user|>\n", "<|assistant|>\n", "<|end|>"
    else:
        system, user, assistant, end = (f"<|im_start|>{role}\n" for role in ("system", "user", "assistant", "end"))
        end = "<|im_end|>"
    opens = {"human": user, "gpt": assistant}
    for turns in CONVERSATIONS:
        whole = system + OLD_SYSTEM + end + "".join(opens[role] + text.strip() + end for role, text in turns)
        ids, labels = encoded(ours, template, turns)
        assert ids == theirs(whole.replace("<image>", IMAGE)).input_ids
        learned = [label for label in labels if label != -100]
        answers = [text.strip() for role, text in turns if role == "gpt"]
        said = theirs.decode(learned).replace(" ", "").replace("\n", "")  # blanks of Llama's pieces do not matter here
        assert said == "".join(answer + end for answer in answers).replace(" ", "").replace("\n", "")


@pytest.mark.parametrize(
    ("name", "template", "mark", "fit"),
    [
        ("qwen2", "phi3-chat", "<|end|>, which ends an answer", "internlm2-chat, internvl2_5, Hermes-2"),
        ("phi3", "internvl2_5", "<|im_end|>, which ends an answer", "llama3-chat, phi3-chat"),
        ("internlm2", "llama3-chat", "<|end|>, which ends an answer", "internlm2-chat, internvl2_5, Hermes-2"),
    ],
)
def test_a_template_the_checkpoint_does_not_belong_to(kind, name, template, mark, fit):
    with pytest.raises(ConfigError) as caught:
        Tokenizer.of_model(kind(name), None, template)
    assert f"the tokenizer has no token {mark} in conversation template {template!r}" in str(caught.value)
    assert str(caught.value).endswith(f"those whose tokens it has are {fit}")


def test_indexed_sets_know_older_templates_as_before():
    """Digests of the release before; a set that was built then is still taken."""
    assert {name: template_digest(name) for name in DIGESTS} == DIGESTS
    assert "separator" in repr(get_template("internvl2_5"))
