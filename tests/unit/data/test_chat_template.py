"""`apply_chat_template` of transformers with our Jinja text gives our ids, for every template and its tokenizers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.tokenizer_kinds import KINDS
from megatron_v2pe.data.chat_template import chat_template
from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.tokenize import encode_conversation
from megatron_v2pe.data.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
PAIRS = [
    ("qwen2", "internvl2_5"),
    ("qwen3", "internvl2_5"),
    ("qwen2", "Hermes-2"),
    ("llama", "Hermes-2"),
    ("llama, legacy", "Hermes-2"),
    ("llama3", "internlm2-chat"),
    ("phi3", "phi3-chat"),
]
TURNS = [
    ("human", " What is it? {{ x }} 'a' \"b\" \\n\n"),
    ("gpt", "\n\nA 橘猫🐱,\n  it's <b>one</b> "),
    ("human", "and & here<|im_end|>\n"),
]
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@pytest.fixture(scope="module", params=PAIRS, ids=" ".join)
def opened(request, tmp_path_factory):
    kind, name = request.param
    folder = tmp_path_factory.mktemp("kind")
    KINDS[kind](folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours, template = Tokenizer.of_model(folder, None, name), get_template(name)
    theirs.chat_template = chat_template(template, ours)
    return ours, template, theirs


def messages(turns):
    return [{"role": ROLES[role], "content": text} for role, text in turns]


@pytest.mark.parametrize("system", [[], [("system", " Be brief: {% x %}\n")]])
def test_the_ids_of_a_conversation(opened, system):
    ours, template, theirs = opened
    for turns, prompt in ((TURNS, True), (TURNS[:2], False), (TURNS[:1], True)):
        ids, _ = encode_conversation(ours, template, [*system, *turns], [], 4, prompt=prompt)
        said = theirs.apply_chat_template(messages([*system, *turns]), add_generation_prompt=prompt, return_dict=False)
        assert said == ids.tolist()


def test_images_and_parts(opened):
    """The processor of transformers puts an image's tokens where its mark stands; here that is done by hand."""
    ours, template, theirs = opened
    parts = [{"type": "image"}, {"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]
    text = theirs.apply_chat_template([{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True)
    text = text.replace("<IMG_CONTEXT>", "<img>" + "<IMG_CONTEXT>" * 8 + "</img>")
    ids, _ = encode_conversation(ours, template, [("human", "<image>\nWhat is it?")], [2], 4, prompt=True)
    assert theirs(text, add_special_tokens=False).input_ids == ids.tolist()


def test_what_our_template_refuses_is_refused(opened):
    ours, template, theirs = opened
    with pytest.raises(Exception, match="turns must alternate"):
        theirs.apply_chat_template(messages([TURNS[0], TURNS[0]]))
    theirs.chat_template, kept = chat_template(replace(template, system_prompt=""), ours), theirs.chat_template
    with pytest.raises(Exception, match="a system turn, but"):
        theirs.apply_chat_template(messages([("system", "S"), *TURNS]))
    theirs.chat_template = kept
