"""Folders of other models, and tokenizers of other models: every tool that opens a checkpoint says so, in one way.

The kinds of fault: a tool that looks at the tokenizer first says of a Mamba checkpoint that a file is missing; one that
never compares tokenizer and model answers from a row of padding, or ends with an IndexError.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import V2PEError
from megatron_v2pe.generate.load import add_checkpoint_arguments, load_request
from megatron_v2pe.generate.pretrained import open_pretrained
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.data_tools import add_model_arguments, read_settings, tokenizer_and_facts
from megatron_v2pe.train.main import run
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config, write_hf_folder
from megatron_v2pe.workshop.synthetic.small_data import write_tokenizer

ROWS = 512


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small HF folder, and the same as a Megatron checkpoint."""
    config: dict[str, Any] = internvl2_2b_config() | {"force_image_size": 56}
    config["vision_config"] |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 56}
    config["vision_config"]["num_attention_heads"] = 2
    config["llm_config"] |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": ROWS}
    config["llm_config"] |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    folder = tmp_path_factory.mktemp("checkpoints")
    write_hf_folder(folder / "hf", config, shards=1)
    write_tokenizer(folder / "hf")
    hf_to_mcore(folder / "hf", folder / "mcore")
    return folder


def converted(folder, tmp_path):
    hf_to_mcore(folder, tmp_path / "mcore")


def asked(folder, tmp_path):
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint")
    add_checkpoint_arguments(parser)
    arguments = parser.parse_args(["--converted-dir", str(tmp_path / "converted"), "--no-verify"])
    arguments.checkpoint = Path(folder)
    load_request(arguments)


def preprocessed(folder, tmp_path):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    words = ["--model.model-name-or-path", str(folder), "--checkpoint.verify", "false", "--data.meta-path", "none.json"]
    settings = read_settings(words, RECIPES)
    tokenizer_and_facts(parser.parse_args([]), settings)


def trained(folder, tmp_path):
    changes = {
        "model": {"model_name_or_path": str(folder), "converted_dir": str(tmp_path / "converted")},
        "checkpoint": {"verify": False},
        "data": {"meta_path": "none.json"},
        "train": {"train_steps": 1, "device": "cpu"},
    }
    run(ExperimentConfig().updated(changes, "here"))


HF_TOOLS = (converted, asked, preprocessed, trained)


@pytest.mark.parametrize("tool", HF_TOOLS)
@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("llm_config", {"architectures": ["FalconForCausalLM"], "model_type": "falcon"}, "'FalconForCausalLM'"),
        ("", {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}, "'LlavaForConditional"),
        ("", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "'LlamaForCausalLM'"),
        ("", {"model_type": None}, "'model_type' is missing"),
    ],
)
def test_another_architecture_is_named_before_its_tokenizer_is_missed(whole, tmp_path, tool, section, changes, words):
    shutil.copytree(whole / "hf", tmp_path / "hf", ignore=shutil.ignore_patterns("tokenizer*", "added*"))
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    (config[section] if section else config).update(changes)
    path.write_text(json.dumps(config))
    with pytest.raises(V2PEError, match=words) as caught:
        tool(tmp_path / "hf", tmp_path)
    assert "model_type" in str(caught.value) and "tokenizer" not in str(caught.value)


def with_token(folder, number):
    path = folder / "added_tokens.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"<mytag>": number}))


@pytest.mark.parametrize("tool", HF_TOOLS)
@pytest.mark.parametrize("number", [ROWS, ROWS + 89, 92_552])
def test_a_token_without_a_row_is_refused(whole, tmp_path, tool, number):
    """The first beyond the rows lies in the padding of the embedding, where nothing would fail."""
    shutil.copytree(whole / "hf", tmp_path / "hf")
    with_token(tmp_path / "hf", number)
    message = f"{number + 1} tokens in the tokenizer, {ROWS} rows in the model; '<mytag>' has id {number}; tokens were"
    with pytest.raises(V2PEError, match=message):
        tool(tmp_path / "hf", tmp_path)


def exported(folder, tmp_path):
    mcore_to_hf(folder, tmp_path / "back", verify=False)


def opened(folder, tmp_path):
    with open_pretrained(folder, device="cpu", verify=False):
        raise AssertionError("opened")


@pytest.mark.parametrize("tool", [exported, opened, asked, preprocessed, trained])
def test_a_token_without_a_row_in_a_megatron_checkpoint(whole, tmp_path, tool):
    shutil.copytree(whole / "mcore", tmp_path / "mcore")
    with_token(tmp_path / "mcore" / "hf", ROWS)
    with pytest.raises(V2PEError, match=f"{ROWS + 1} tokens in the tokenizer, {ROWS} rows in the model"):
        tool(tmp_path / "mcore", tmp_path)


def test_the_tokenizer_of_a_larger_model_is_named_as_such(whole, tmp_path):
    with pytest.raises(
        V2PEError, match=r"tokens in the tokenizer, 300 rows .* alone has \d+ pieces, it belongs to ano"
    ):
        Tokenizer.of_model(whole / "hf", 300)


def test_a_tokenizer_without_image_tokens_is_refused(whole, tmp_path):
    shutil.copy(whole / "hf" / "tokenizer.model", tmp_path)
    with pytest.raises(V2PEError, match="lacks <img>, </img>, <IMG_CONTEXT>; it is not an InternVL tokenizer"):
        Tokenizer.of_model(tmp_path, None)


def test_tokens_that_stand_in_tokenizer_json_alone_are_read(whole, tmp_path):
    """Newer transformers leaves `added_tokens.json` out; the two files of the published code come first."""
    shutil.copy(whole / "hf" / "tokenizer.model", tmp_path)
    before = Tokenizer.of_model(whole / "hf", ROWS)
    names = [name for name in before.special if name.startswith("<") and name not in ("<s>", "</s>", "<unk>")]
    tokens = [{"id": before.special[name], "content": name, "special": True} for name in names]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    assert Tokenizer.of_model(tmp_path, ROWS).special == before.special
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [*tokens, {"id": ROWS, "content": "<mytag>"}]})
    )
    with pytest.raises(V2PEError, match="'<mytag>' has id 512"):
        Tokenizer.of_model(tmp_path, ROWS)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": "5", "content": "<img>"}]}))
    with pytest.raises(V2PEError, match=r"tokenizer.json: added_tokens\[0\]: id: found the text '5'"):
        Tokenizer.of_model(tmp_path, ROWS)
