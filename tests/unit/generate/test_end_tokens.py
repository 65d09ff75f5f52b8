"""The tokens that end an answer come from the template, the tokenizer and the checkpoint's own settings."""

from __future__ import annotations

import json

import pytest

from helpers.tokenizer_kinds import KINDS, write_internlm2
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.generate.end_tokens import end_tokens

WITH_TEMPLATE = {"qwen2": "internvl2_5", "llama3": "internlm2-chat", "llama": "Hermes-2", "phi3": "phi3-chat"}


@pytest.fixture(scope="module", params=WITH_TEMPLATE)
def opened(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kind")
    KINDS[request.param](folder)
    return folder, Tokenizer.of_model(folder, None, WITH_TEMPLATE[request.param]), WITH_TEMPLATE[request.param]


def test_ends_are_those_of_the_kind(opened):
    folder, tokenizer, template = opened
    end = tokenizer.token_id("<|end|>" if template == "phi3-chat" else "<|im_end|>")
    assert end_tokens(folder, tokenizer, template, len(tokenizer)) == {end}  # `eos_token` is the same in these


@pytest.mark.parametrize(("stated", "more"), [(3, {3}), ([4, 5], {4, 5}), ([4, 10**6], {4}), (None, set())])
def test_the_checkpoint_names_more(opened, tmp_path, stated, more):
    _, tokenizer, template = opened
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    plain = end_tokens(tmp_path.parent, tokenizer, template, len(tokenizer))
    assert end_tokens(tmp_path, tokenizer, template, len(tokenizer)) == plain | more


@pytest.mark.parametrize("stated", ["2", True, [2, "3"], -1, 1.5, {"id": 2}])
def test_what_is_no_id_is_named(opened, tmp_path, stated):
    _, tokenizer, template = opened
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    with pytest.raises(ConfigError, match=r"generation_config.json: eos_token_id"):
        end_tokens(tmp_path, tokenizer, template, len(tokenizer))


def test_internlm2_ends_a_text_with_its_own_token(tmp_path):
    write_internlm2(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    ends = {tokenizer.token_id("</s>"), tokenizer.token_id("<|im_end|>")}
    assert end_tokens(tmp_path, tokenizer, "internlm2-chat", len(tokenizer)) == ends
