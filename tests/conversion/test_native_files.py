"""Tokenizer, chat template and settings of a native export: `transformers` opens them and gives our ids."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image

from helpers.native_models import small_config
from helpers.tokenizer_kinds import KINDS, texts, write_internlm2
from megatron_v2pe.checkpoint.hf.hf_config import for_folder
from megatron_v2pe.data.conversation import TEMPLATES
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.data.image_plan import choose_grid
from megatron_v2pe.data.image_tiles import cut_tiles
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.library_files import open_library
from megatron_v2pe.foreign.sentence_piece_library import library_of_pieces
from megatron_v2pe.foreign.tokenizer_settings import TokenizerSettings, TokenizerSource
from megatron_v2pe.generate.native_files import (
    ORIGINALS,
    check_conversation,
    restore_original_files,
    side_files,
    write_native_files,
)
from megatron_v2pe.kernels.tiles import normalise_tiles
from megatron_v2pe.models.native_config import NATIVE

transformers = pytest.importorskip("transformers")
GotOcr2ImageProcessorPil = pytest.importorskip(
    "transformers.models.got_ocr2.image_processing_pil_got_ocr2"
).GotOcr2ImageProcessorPil
WRITERS = {**KINDS, "internlm2": write_internlm2}
MODELS = {"internlm2": "internlm2", "llama": "llama", "llama3": "llama", "phi3": "phi3", "qwen2": "qwen2"}
TEMPLATE_OF = {"internlm2": "internlm2-chat", "phi3": "phi3-chat"}
COUNT = 2500


def exported(kind, tmp_path, whole=False, **changes):
    """The original folder, `whole` with a `tokenizer.json` too, and the native one made of it, without weights."""
    source, target = tmp_path / "original", tmp_path / "native"
    rows = WRITERS[kind](source)
    if whole:
        settings = TokenizerSettings.read(source, ConfigError)
        library = open_library(source, TokenizerSource.LLAMA_MODEL, settings, ConfigError).library
        (source / "tokenizer.json").write_text(library.to_str())
    config = small_config(MODELS.get(kind.split(",")[0], "qwen2"), **changes)
    config["llm_config"] = {**config["llm_config"], "vocab_size": rows + 100}
    (source / "config.json").write_text(json.dumps(config))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1], "_from_model_config": True}))
    (source / "modeling_internvl_chat.py").write_text("raise RuntimeError\n")
    (source / "README.md").write_text("A model.\n")
    shutil.copytree(source, target)
    native = for_folder(config, NATIVE, source)
    (target / "config.json").write_text(json.dumps(native))
    write_native_files(source, target, native)
    return source, target, native


@pytest.mark.parametrize("kind", WRITERS)
def test_transformers_gives_our_ids(kind, tmp_path):
    name = TEMPLATE_OF.get(kind, "internvl2_5")
    if kind.startswith("llama") and kind != "llama3":
        name = "internlm2-chat"
    source, target, native = exported(kind, tmp_path, template=name)
    ours, again = Tokenizer.from_folder(source), Tokenizer.from_folder(target)
    theirs = transformers.AutoTokenizer.from_pretrained(target)
    assert native["image_token_id"] == ours.img_context_id == theirs.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert theirs.context_image_token_id == ours.img_context_id and theirs.start_image_token_id == ours.img_start_id
    assert again.before == ours.before and again.special.items() >= ours.special.items()
    different = [
        text
        for text in texts(COUNT)
        if not ours.encode(text) == again.encode(text) == theirs.encode(text, add_special_tokens=False)
    ]
    assert not different, (len(different), different[:3])
    turns = [("human", ' What "is" 中 it?\n'), ("gpt", " A\n thing. "), ("human", "And that?")]
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    template = TEMPLATES[name]
    for conversation in (turns, [("system", "Be brief."), *turns]):
        messages = [{"role": roles[role], "content": [{"type": "text", "text": text}]} for role, text in conversation]
        given = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        expected = list(ours.before)
        for message in template.render(conversation, prompt=True):
            expected += ours.encode(message.text)
        assert list(given) == expected
    stops = transformers.GenerationConfig.from_pretrained(target).eos_token_id
    assert {0, 1} <= {*stops} and (template.end not in ours.special or ours.special[template.end] in stops)


@pytest.mark.parametrize(
    ("kind", "whole"), [("internlm2", False), ("internlm2", True), ("qwen2", False), ("phi3", True)]
)
def test_the_original_files_come_back(kind, whole, tmp_path):
    source, target, _ = exported(kind, tmp_path, whole)
    assert not list(target.glob("*.py")) and (target / ORIGINALS / "modeling_internvl_chat.py").is_file()
    back = tmp_path / "back"
    shutil.copytree(target, back)
    shutil.copy(source / "config.json", back / "config.json")
    restore_original_files(target, back)
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    assert {path.name: path.read_bytes() for path in back.iterdir()} == files


def test_nothing_but_such_files_comes_back(tmp_path):
    """What else somebody has put into the folder of originals stands in place of nothing, weights least of all."""
    source, target, _ = exported("qwen2", tmp_path)
    back = tmp_path / "back"
    shutil.copytree(target, back)
    files = {"config.json": b"ours", "model.safetensors": b"ours", "checksums.json": b"ours"}
    for name, content in files.items():
        (target / ORIGINALS / name).write_bytes(b"theirs")
        (back / name).write_bytes(content)
    (target / ORIGINALS / "deeper").mkdir()
    restore_original_files(target, back)
    assert {name: (back / name).read_bytes() for name in files} == files and not (back / "deeper").exists()


def test_a_native_folder_of_others_becomes_original(tmp_path, caplog):
    _, target, _ = exported("qwen2", tmp_path)
    shutil.rmtree(target / ORIGINALS)
    back = tmp_path / "back"
    shutil.copytree(target, back)
    restore_original_files(target, back)
    assert "no remote code" in caplog.text
    stated = json.loads((back / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in stated and stated["tokenizer_class"] == "Qwen2Tokenizer"
    assert Tokenizer.from_folder(back).encode("a <img> b") == Tokenizer.from_folder(target).encode("a <img> b")


def test_a_native_folder_that_was_trained_on_states_its_new_tiles_and_template(tmp_path):
    _, target, native = exported("qwen2", tmp_path)
    again = tmp_path / "again"
    shutil.copytree(target, again)
    side_files(target, again, NATIVE, native)
    assert {path.name: path.read_bytes() for path in again.iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in target.iterdir() if path.is_file()
    }
    side_files(target, again, NATIVE, {**native, "max_dynamic_patch": 3, "template": "internvl2_5"})
    assert json.loads((again / "preprocessor_config.json").read_text())["max_patches"] == 3
    own = {"image_processor_type": "GotOcr2ImageProcessor", "max_patches": 12, "data_format": "channels_first"}
    saved = {"image_processor": own, "image_seq_length": 4, "processor_class": "InternVLProcessor"}
    (target / "processor_config.json").write_text(json.dumps(saved))  # as transformers 5 saves a processor
    side_files(target, again, NATIVE, {**native, "max_dynamic_patch": 3})
    read = json.loads((again / "processor_config.json").read_text())
    assert read.keys() == saved.keys() and read["image_processor"].items() >= {**own, "max_patches": 3}.items()
    assert (again / "chat_template.jinja").read_text() != (target / "chat_template.jinja").read_text()


def test_tiles_and_norms_go_into_the_processor(tmp_path):
    _, target, native = exported("qwen2", tmp_path, max_dynamic_patch=9, normalize_type="siglip")
    read = {path.stem: json.loads(path.read_text()) for path in target.glob("*processor_config.json")}
    image = read["preprocessor_config"]
    assert (image["max_patches"], image["size"], image["image_mean"]) == (9, {"height": 28, "width": 28}, [0.5] * 3)
    assert read["processor_config"]["image_seq_length"] == native["image_seq_length"] == 4
    assert read["video_preprocessor_config"]["size"] == image["size"]


def test_transformers_cuts_the_same_tiles(tmp_path):
    """By Pillow bit by bit; with torchvision, whose bicubic filter is another one, to 0.35 on noise (measured)."""
    _, target, native = exported("qwen2", tmp_path, force_image_size=28)
    processor = GotOcr2ImageProcessorPil.from_pretrained(target)
    mean, deviation = NORMALISATION["imagenet"]
    rng = np.random.default_rng(0)
    for number in range(60):
        width, height = rng.integers(20, 300, 2).tolist()
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        grid = choose_grid(width, height, 1, 6, 28)
        ours = normalise_tiles(torch.from_numpy(cut_tiles(image, grid, True, 28)), mean, deviation)
        theirs = processor(image, return_tensors="pt")
        assert torch.equal(theirs["pixel_values"], ours), (number, width, height)
        assert theirs["num_patches"].tolist() == [len(ours)]


def test_the_whole_processor(tmp_path):
    """`AutoProcessor` needs torchvision, as transformers has no other video processor."""
    pytest.importorskip("torchvision")
    source, target, native = exported("internlm2", tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(target)
    tokenizer, template = Tokenizer.from_folder(source), TEMPLATES["internlm2-chat"]
    image = Image.new("RGB", (70, 30), (200, 100, 50))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    given = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    tiles = len(given["pixel_values"])
    assert tiles == 1 + choose_grid(70, 30, 1, 6, 28)[0] * choose_grid(70, 30, 1, 6, 28)[1]
    expected = tokenizer_ids(tokenizer, template, tiles * native["image_seq_length"])
    assert given["input_ids"][0].tolist() == expected


def tokenizer_ids(tokenizer, template, image_tokens):
    ids = list(tokenizer.before)
    for message in template.render(
        [("human", f"<img>{'<IMG_CONTEXT>' * image_tokens}</img>\nWhat is it?")], prompt=True
    ):
        ids += tokenizer.encode(message.text)
    return ids


def test_another_order_of_merges_would_be_seen(tmp_path):
    write_internlm2(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    content = library_of_pieces(tmp_path / "tokenizer.model", ours.special, ConfigError)
    right = tokenizers.Tokenizer.from_str(json.dumps(content))
    content["model"]["merges"].reverse()
    wrong = tokenizers.Tokenizer.from_str(json.dumps(content))
    sample = texts(300)
    assert all(right.encode(text).ids == ours.encode(text) for text in sample)
    assert sum(wrong.encode(text).ids != ours.encode(text) for text in sample) > 20


def test_a_template_or_an_image_token_of_another_checkpoint_is_refused(tmp_path):
    _, target, native = exported("qwen2", tmp_path, template="internvl2_5")
    check_conversation(target)
    own = native["image_token_id"]
    write_config(target, {**native, "image_token_id": own - 1})
    with pytest.raises(ConfigError, match=f"image_token_id is {own - 1}, the tokenizer's <IMG_CONTEXT> is {own}"):
        check_conversation(target)
    write_config(target, {**native, "template": "llama3-chat"})
    with pytest.raises(ConfigError, match=r"no token <\|.*'llama3-chat'.*internvl2_5"):
        check_conversation(target)


def test_a_template_without_its_tokens_gives_no_chat_template(tmp_path, caplog):
    _, target, _ = exported("qwen2", tmp_path, template="llama3-chat")
    assert not (target / "chat_template.jinja").exists() and "no chat_template.jinja is written" in caplog.text


def write_config(folder, content):
    (folder / "config.json").write_text(json.dumps(content))
