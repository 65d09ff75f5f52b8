"""A run that adds tokens: saved, resumed, exported to both layouts, asked by transformers, trained on with more."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.token_runs import (
    MORE,
    TEXT,
    TOKENS,
    bytes_of,
    exported,
    load_tool,
    settings,
    tensors,
    told,
    trained,
    write_base,
)
from megatron_v2pe.checkpoint.growth import TABLES
from megatron_v2pe.checkpoint.hf.facts import facts_of, in_words
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.grown_tokenizer import read_new_tokens
from megatron_v2pe.generate.compared_logits import LogitInput, logits_of
from megatron_v2pe.generate.pretrained import ChatQuestion, open_pretrained
from megatron_v2pe.generate.prompt import checkpoint_tiling
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train.data_tools import add_model_arguments, read_settings, tokenizer_and_facts
from megatron_v2pe.train.preflight.run import inspect_run

LOGITS = 1e-5  # absolute, on logits up to 1.0; measured 1.8e-7


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    return trained(settings(base, tmp_path_factory.mktemp("whole") / "run"))


def test_a_run_goes_on_to_the_bit_with_the_same_file(base, whole, tmp_path):
    config = settings(base, tmp_path / "run")
    first = trained(config, exit_step=2)
    assert (tmp_path / "run" / "iter_0000002") == first
    last = trained(config)
    assert told(last) == told(whole)
    assert bytes_of(last / "hf") == bytes_of(whole / "hf")
    ours, theirs = tensors(last), tensors(whole)
    assert ours.keys() == theirs.keys() and not [key for key in ours if not torch.equal(ours[key], theirs[key])]


def test_another_file_is_refused_with_the_difference(base, tmp_path):
    config = settings(base, tmp_path / "run")
    trained(config, exit_step=1)
    before = bytes_of(tmp_path / "run")
    other = {"content": "[CRACK]", "mean_of": "and"}
    files = {
        r"lacks 1 tokens of the checkpoint \(<loc_2>\).*another id, '\[CRACK\]' 413 there and 412 here": TOKENS[::2],
        r"the checkpoint lacks 1 tokens of the file \(<loc_9>\)": [*TOKENS, "<loc_9>"],
        r"1 tokens have other rules or pieces \(\[CRACK\]\)": [*TOKENS[:2], other],
    }
    for words, tokens in files.items():
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(tokens))
        changed = settings(base, tmp_path / "run", add_tokens=str(path))
        assert any("has changed since the run began" in str(problem) for problem in inspect_run(changed).problems)
        with pytest.raises(ConfigError, match=f"has changed since the run began.*{words}"):
            trained(changed)
    with pytest.raises(ConfigError, match="has 3 tokens that the start of this run has not: <loc_1>, <loc_2>, "):
        trained(settings(base, tmp_path / "run", add_tokens=None))
    own = settings(base, tmp_path / "run", model_name_or_path=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="'<loc_1>' is token 411 .* all tokens of the file are.*leave model.add_tok"):
        trained(own)
    after = bytes_of(tmp_path / "run")
    assert {name for name in after if before.get(name) != after[name]} <= {"train.log"}


def test_exports_are_asked_by_transformers(whole, tmp_path):
    transformers = pytest.importorskip("transformers")
    native = exported(whole, tmp_path / "native", "native")
    ours, theirs = Tokenizer.from_folder(whole / "hf"), transformers.AutoTokenizer.from_pretrained(native)
    ids = theirs(TEXT, add_special_tokens=False).input_ids
    assert ours.encode(TEXT) == Tokenizer.from_folder(native).encode(TEXT) == ids
    assert [theirs.convert_tokens_to_ids(token) for token in TOKENS] == [411, 412, 413]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == TEXT
    kind = transformers.AutoModelForImageTextToText
    model, report = kind.from_pretrained(native, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    assert model.config.text_config.vocab_size == 414 and model.get_input_embeddings().weight.shape[0] == 414
    with open_pretrained(whole, device="cpu") as pretrained:
        question = ChatQuestion((("human", TEXT),))
        asked = pretrained.encode([question], checkpoint_tiling(pretrained.config), 1)[0].input_ids
    assert {411, 412, 413} < set(asked.tolist())
    with torch.no_grad():
        expected = model.eval()(input_ids=asked[None]).logits[0, -1]
    found = logits_of(whole, LogitInput(prompt=TEXT))[0]
    assert found.shape == expected.shape == (414,)
    assert (found - expected).abs().max() < LOGITS < expected.abs().max() / 100
    again = exported(whole, tmp_path / "original", "original")
    assert json.loads((again / "config.json").read_text())["llm_config"]["vocab_size"] == 414
    assert Tokenizer.from_folder(again).fingerprint == ours.fingerprint
    assert "<loc_1>" in json.loads((again / "added_tokens.json").read_text())


def test_an_indexed_data_set_is_built_with_the_tokens(base, whole):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    words = ["--model.model-name-or-path", str(base / "hf"), "--model.add-tokens", str(base / "tokens.txt")]
    words += ["--data.meta-path", str(base / "data" / "meta.json")]
    tokenizer, _, _ = tokenizer_and_facts(parser.parse_args([]), read_settings(words, RECIPES))
    assert tokenizer.fingerprint == Tokenizer.from_folder(whole / "hf").fingerprint


def test_a_further_run_knows_the_tokens_and_adds_more(base, whole, tmp_path):
    start = str(whole)
    plain = trained(settings(base, tmp_path / "plain", model_name_or_path=start, add_tokens=None), train_steps=1)
    assert Tokenizer.from_folder(plain / "hf").encode(TEXT) == Tokenizer.from_folder(whole / "hf").encode(TEXT)
    more = settings(base, tmp_path / "more", model_name_or_path=start, add_tokens=str(base / "more.txt"))
    last = trained(more, train_steps=1)
    assert [(token.content, token.id) for token in read_new_tokens(last / "hf", ConfigError)] == [
        *zip((*TOKENS, *MORE), range(411, 415), strict=True)
    ]
    assert InternVLConfig.from_folder(last / "hf").llm.vocab_size == 415
    shown = "\n".join(in_words(facts_of(last)))
    assert "new tokens: 4, ids 411 to 414: <loc_1>, <loc_2>, [CRACK], <loc_3>" in shown


@pytest.mark.parametrize("planted_break", [None, "gradients", "weight decay"])
def test_rows_of_new_tokens_learn_alone(base, tmp_path, monkeypatch, planted_break):
    """With weight decay; every other row keeps its bits, unless its gradient or its weight decay is not left out."""
    if planted_break == "gradients":
        monkeypatch.setattr("megatron_v2pe.train.ddp.clear_other_rows", lambda model: None)
    elif planted_break:
        monkeypatch.setattr("megatron_v2pe.train.optimizer_step.has_new_rows", lambda parameter: False)
    frozen = {"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True, "train_new_tokens": True}
    config = settings(base, tmp_path / "run", **frozen).updated({"optimizer": {"weight_decay": 0.5}}, "test")
    first, last = tensors(trained(config, exit_step=1)), tensors(trained(config))
    changed = {name for name in first if not name.startswith("optimizer") and not torch.equal(first[name], last[name])}
    assert changed == set(TABLES)
    kept = [torch.equal(first[name][:411], last[name][:411]) for name in TABLES]
    assert kept == [planted_break is None] * 2
    assert all((first[name][411:] != last[name][411:]).any(1).all() for name in TABLES)


@pytest.mark.parametrize("layout", ["original", "native", "run"])
def test_a_folder_with_tokens_is_written_without_training(base, whole, tmp_path, layout):
    """The folder is the start of a run with the tokens: the first loss of a run from either is the same."""
    source = base / "hf" if layout == "original" else whole
    if layout == "native":
        source = exported(whole, tmp_path / "base", "native")
    listed = str(base / ("tokens.txt" if layout == "original" else "more.txt"))
    tool = load_tool("add_tokens")
    assert tool.main([str(source), listed, str(tmp_path / "grown")]) == 0
    tokens = TOKENS if layout == "original" else (*TOKENS, *MORE)
    rows = 411 + len(tokens)
    assert [token.content for token in read_new_tokens(tmp_path / "grown", ConfigError)] == [*tokens]
    assert InternVLConfig.from_folder(tmp_path / "grown").llm.vocab_size == rows
    start = {"model_name_or_path": str(tmp_path / "grown"), "add_tokens": None}
    narrow = {"train_steps": 1, "precision": "bf16"}  # as the folder stores its weights
    from_grown = trained(settings(base, tmp_path / "first", **start), **narrow)
    added = settings(base, tmp_path / "second", model_name_or_path=str(source), add_tokens=listed)
    assert told(from_grown) == told(trained(added, **narrow))
    if layout == "native":
        assert (
            Tokenizer.from_folder(tmp_path / "grown").fingerprint
            == Tokenizer.from_folder(from_grown / "hf").fingerprint
        )
        back = exported(from_grown, tmp_path / "back", "original")
        assert Tokenizer.from_folder(back).special["<loc_3>"] == 414, "files kept for the other layout know it too"
    assert tool.main([str(source), listed, str(tmp_path / "grown")]) == 2, "it is there"


def test_rows_of_tokens_that_the_base_has_learn_beside_adapters(base, tmp_path):
    """Checkpoints hold adapters and these rows; those of a run that adds tokens: `test_lora_with_new_tokens.py`."""
    grown = tmp_path / "grown"
    assert load_tool("add_tokens").main([str(base / "hf"), str(base / "tokens.txt"), str(grown)]) == 0
    settled = settings(base, tmp_path / "run", model_name_or_path=str(grown), add_tokens=None, train_new_tokens=True)
    frozen = {"model": {"freeze_mlp": True, "freeze_backbone": True}, "optimizer": {"weight_decay": 0.5}}
    last = trained(settled.updated({"adapter": {"kind": "lora", "rank": 2}, **frozen}, "test"), train_steps=2)
    held = {name: one.shape[0] for name, one in tensors(last).items() if ".adapter." not in name}
    assert {name for name in held if not name.startswith("optimizer")} == set(TABLES) and {*held.values()} == {3}
    merged = exported(last, tmp_path / "merged", "original")
    state, before = load_file(merged / "model.safetensors"), load_file(grown / "model.safetensors")
    for key in ("language_model.model.tok_embeddings.weight", "language_model.output.weight"):
        assert torch.equal(state[key][:411], before[key][:411].float())
        assert (state[key][411:] != before[key][411:].float()).any(1).all()


def test_no_new_token_to_learn(base, tmp_path):
    config = settings(base, tmp_path / "run", add_tokens=None, train_new_tokens=True, freeze_llm=True)
    assert any("no token was added to" in str(problem) for problem in inspect_run(config).problems)
    with pytest.raises(ConfigError, match="train_new_tokens: no token was added to"):
        trained(config)
    with pytest.raises(ConfigError, match="train_new_tokens is set without model.freeze_llm"):
        trained(settings(base, tmp_path / "run", train_new_tokens=True))
    assert not list((tmp_path / "run").glob("iter_*"))
