"""The quickstart's parts, without its training: model and data are as announced, answers are compared as announced."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.golden import read_checkpoint
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf
from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import TrainingDocument
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.generate.pretrained import inference_policy
from megatron_v2pe.generate.prompt import checkpoint_tiling, encode_prompt
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.recipes.quickstart import quickstart
from megatron_v2pe.v2pe.settings import StridePolicy, V2PESettings
from megatron_v2pe.workshop.synthetic.small_families import SMALL_FAMILIES

ROOT = Path(__file__).resolve().parents[2]


def example(name: str) -> ModuleType:
    """Import one of the quickstart's scripts, as it imports its neighbours."""
    folder = str(ROOT / "examples" / "quickstart")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set and the model."""
    out = tmp_path_factory.mktemp("quickstart")
    assert example("make_data").main([str(out / "data")]) == 0
    assert example("make_model").main([str(out / "hf"), "--texts", str(out / "data" / "annotation")]) == 0
    return out


def documents(made: Path) -> list[TrainingDocument]:
    """Every sample as training encodes it."""
    recipe = quickstart()
    model = InternVLConfig.from_folder(made / "hf")
    facts = ModelFacts(model.tile_size, model.tokens_per_tile)
    policy = recipe.v2pe.policy(recipe.train.seed)
    encoder = DocumentEncoder(recipe.data, Tokenizer.from_folder(made / "hf"), facts, policy, recipe.train.seed)
    datasets = read_data_list(made / "data" / "meta.json")
    lines = [(dataset, line) for dataset in datasets for line in range(len(dataset))]
    return [encoder.document(dataset, line, epoch=0, number=number) for number, (dataset, line) in enumerate(lines)]


def names_and_shapes(model: InternVLConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of an InternVL2 checkpoint, written out from its published list of weights."""
    vision, llm = model.vision, model.llm
    v, vf, h, f = vision.hidden_size, vision.ffn_hidden_size, llm.hidden_size, llm.ffn_hidden_size
    patches = (vision.image_size // vision.patch_size) ** 2
    packed = (llm.num_attention_heads + 2 * llm.num_query_groups) * llm.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, v),
        "vision_model.embeddings.patch_embedding.weight": (v, 3, vision.patch_size, vision.patch_size),
        "vision_model.embeddings.patch_embedding.bias": (v,),
        "vision_model.embeddings.position_embedding": (1, patches + 1, v),
        "mlp1.0.weight": (4 * v,),
        "mlp1.0.bias": (4 * v,),
        "mlp1.1.weight": (h, 4 * v),
        "mlp1.1.bias": (h,),
        "mlp1.3.weight": (h, h),
        "mlp1.3.bias": (h,),
        "language_model.model.tok_embeddings.weight": (llm.vocab_size, h),
        "language_model.model.norm.weight": (h,),
        "language_model.output.weight": (llm.vocab_size, h),
    }
    for layer in range(vision.num_layers):
        prefix = f"vision_model.encoder.layers.{layer}."
        linears = {"attn.qkv": (3 * v, v), "attn.proj": (v, v), "mlp.fc1": (vf, v), "mlp.fc2": (v, vf)}
        for name, shape in linears.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        shapes |= {f"{prefix}{name}": (v,) for name in ("ls1", "ls2")}
        shapes |= {f"{prefix}{norm}.{kind}": (v,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    for layer in range(llm.num_layers):
        prefix = f"language_model.model.layers.{layer}."
        shapes |= {
            prefix + "attention.wqkv.weight": (packed, h),
            prefix + "attention.wo.weight": (h, h),
            prefix + "feed_forward.w1.weight": (f, h),
            prefix + "feed_forward.w3.weight": (f, h),
            prefix + "feed_forward.w2.weight": (h, f),
            prefix + "attention_norm.weight": (h,),
            prefix + "ffn_norm.weight": (h,),
        }
    return shapes


def test_model_holds_every_tensor_of_internvl2_and_no_other(made: Path) -> None:
    config, state = read_checkpoint(made / "hf")
    model = InternVLConfig.from_folder(made / "hf")
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == names_and_shapes(model)
    assert 1e6 < sum(tensor.numel() for tensor in state.values()) < 9e6
    assert json.loads((made / "hf" / "model.safetensors.index.json").read_text())["weight_map"].keys() == state.keys()
    assert config["ps_version"] == "v2" and "rope_pos_id_version" not in config  # as an InternVL2 before V2PE


def test_model_divides_by_two_and_its_vocabulary_by_nothing(made: Path) -> None:
    model = InternVLConfig.from_folder(made / "hf")
    sizes = (model.llm.num_attention_heads, model.llm.num_query_groups, model.llm.num_layers)
    assert all(size % 2 == 0 for size in (*sizes, model.vision.num_attention_heads, model.vision.num_layers))
    assert model.llm.vocab_size % 2 and model.llm.padded_vocab_size > model.llm.vocab_size


def test_model_and_data_are_the_same_every_time(made: Path, tmp_path: Path) -> None:
    assert example("make_data").main([str(tmp_path / "data")]) == 0
    assert example("make_model").main([str(tmp_path / "hf"), "--texts", str(tmp_path / "data" / "annotation")]) == 0
    files = [path.relative_to(made) for path in sorted(made.rglob("*")) if path.is_file()]
    assert files == [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    for file in files:
        again = (tmp_path / file).read_bytes().replace(str(tmp_path).encode(), str(made).encode())
        assert (made / file).read_bytes() == again, file


def test_tokenizer_has_the_special_tokens_after_its_pieces(made: Path) -> None:
    tokenizer = Tokenizer.from_folder(made / "hf")
    model = InternVLConfig.from_folder(made / "hf")
    added = json.loads((made / "hf" / "added_tokens.json").read_text())
    assert len(tokenizer) == model.llm.vocab_size and not tokenizer.missing()
    assert sorted(added.values()) == list(range(len(tokenizer) - len(added), len(tokenizer)))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    ids = tokenizer.encode("<|im_start|>user\nA cat.<|im_end|>")
    assert (ids[0], ids[-1]) == (added["<|im_start|>"], added["<|im_end|>"])
    assert tokenizer.decode(ids) == "user\nA cat."


def test_every_kind_of_sample_is_there_and_fits_a_pack(made: Path) -> None:
    recipe = quickstart()
    counts = [len(document.pictures) for document in documents(made)]
    assert {0, 1, 2, 3} <= set(counts)
    datasets = {dataset.name: dataset for dataset in read_data_list(made / "data" / "meta.json")}
    turns = datasets["quickstart_turns"]
    assert all(len(turns.read(line).conversations) == 4 for line in range(len(turns)))
    found = documents(made)
    assert max(document.num_tokens for document in found) <= recipe.data.max_seq_length
    assert max(picture.num_tiles for document in found for picture in document.pictures) > 1  # tiling is dynamic


def test_text_alone_answers_no_question_about_pictures(made: Path) -> None:
    answers: dict[str, set[str]] = {}
    for dataset in read_data_list(made / "data" / "meta.json"):
        for line in range(len(dataset)):
            sample = dataset.read(line)
            if sample.images:
                answers.setdefault(sample.conversations[0][1], set()).add(sample.conversations[1][1])
    assert all(len(found) >= 4 for found in answers.values()), answers


def test_multi_image_answers_depend_on_the_order(made: Path) -> None:
    dataset = next(d for d in read_data_list(made / "data" / "meta.json") if d.name == "quickstart_multi")
    samples = [dataset.read(line) for line in range(len(dataset))]
    by_images = {sample.images: sample.conversations[1][1] for sample in samples}
    assert all(by_images[images[::-1]] != answer for images, answer in by_images.items())


def test_a_prompt_is_the_beginning_of_the_training_document(made: Path) -> None:
    model, tokenizer = InternVLConfig.from_folder(made / "hf"), Tokenizer.from_folder(made / "hf")
    policy = StridePolicy("v2pe_fix", 4)
    found = iter(documents(made))
    for dataset in read_data_list(made / "data" / "meta.json"):
        for line in range(len(dataset)):
            sample, document = dataset.read(line), next(found)
            tiling = checkpoint_tiling(model, dataset.max_dynamic_patch)
            prompt = encode_prompt(sample.conversations[:-1], sample.images, model, tokenizer, policy, tiling)
            answer = len(prompt.input_ids)
            assert prompt.input_ids.tolist() == document.input_ids[:answer].tolist()
            assert document.labels[answer] == document.input_ids[answer]
            assert prompt.num_tiles == tuple(tiles for _, tiles in document.images)
            assert len(prompt.tiles) == sum(prompt.num_tiles)


@pytest.mark.parametrize("family", SMALL_FAMILIES)
def test_a_small_model_of_every_family(made: Path, tmp_path: Path, family: str) -> None:
    """Its tokenizer and template are the family's, a prompt begins its training document, its weights come back."""
    texts = str(made / "data" / "annotation")
    assert example("make_model").main([str(tmp_path / "hf"), "--texts", texts, "--model", family]) == 0
    model, known = InternVLConfig.from_folder(tmp_path / "hf"), SMALL_FAMILIES[family]
    assert [model.llm.architecture] == known.llm["architectures"] and model.template == known.template
    assert model.llm.num_query_groups % 2 == 0  # TP 2, as the quickstart trains
    tokenizer = Tokenizer.of_model(tmp_path / "hf", model.llm.vocab_size, model.template)
    assert len(tokenizer) == model.llm.vocab_size
    data = replace(quickstart().data, template=model.template)
    facts, policy = ModelFacts(model.tile_size, model.tokens_per_tile), StridePolicy("v2pe_fix", 4)
    encoder = DocumentEncoder(data, tokenizer, facts, policy, 0)
    dataset = next(d for d in read_data_list(made / "data" / "meta.json") if d.name == "quickstart_multi")
    document, sample = encoder.document(dataset, 0, epoch=0, number=0), dataset.read(0)
    tiling = checkpoint_tiling(model, dataset.max_dynamic_patch)
    prompt = encode_prompt(sample.conversations[:-1], sample.images, model, tokenizer, policy, tiling)
    answer = len(prompt.input_ids)
    assert prompt.input_ids.tolist() == document.input_ids[:answer].tolist()
    end = tokenizer.token_id(get_template(model.template).end)
    assert document.labels[answer] == document.input_ids[answer] and end in document.labels.tolist()
    hf_to_mcore(tmp_path / "hf", tmp_path / "megatron")
    mcore_to_hf(tmp_path / "megatron", tmp_path / "back")
    for file in sorted((tmp_path / "hf").glob("*.safetensors")):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


def test_plot_writes_a_png_and_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = example("plot_loss")
    metrics, png = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
    metrics.write_text("".join(json.dumps({"iteration": n, "loss": 5 / n}) + "\n" for n in range(1, 41)))
    assert plot.main([str(metrics), str(png), "--stopped-at", "20"]) == 0
    assert png.read_bytes().startswith(b"\x89PNG\r\n") and png.stat().st_size > 5000
    metrics.write_text('{"iteration": 1, "loss": 2.0}\n{"iteration": 2}\n')
    png.unlink()
    assert plot.main([str(metrics), str(png)]) == 1
    assert "metrics.jsonl:2: not a row of metrics" in capsys.readouterr().err and not png.exists()


def test_answers_are_compared_word_for_word(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    ask = example("ask")
    right = ask.Asked("single", "What?", "cat", "A cat.", "A  cat. ")
    wrong = ask.Asked("single", "What?", "dog", "A dog.", "A cat.")
    assert right.right and not wrong.right
    assert not ask.Asked("single", "What?", "dog", "A dog.", "").right
    lines = ask.table([right, wrong]).splitlines()
    assert lines[2].split() == ["right", "What?", "cat", "A", "cat.", "A", "cat."] and lines[3].startswith("WRONG")
    assert ask.summary([right, wrong]) == "1 of 2 right (50.0%): single 1/2"
    for rights, status in ((18, 0), (17, 1)):
        answers = [right] * rights + [wrong] * (20 - rights)
        monkeypatch.setattr(ask, "ask_all", lambda *_, answers=answers: answers)
        assert ask.main(["folder", "meta.json"]) == status
    assert "fewer than 90%" in capsys.readouterr().err


def test_an_untrained_model_fails_the_questions(made: Path, tmp_path: Path) -> None:
    meta = json.loads((made / "data" / "meta.json").read_text())
    for name in ("single", "text"):
        lines = Path(meta[f"quickstart_{name}"]["annotation"]).read_text().splitlines()
        meta[f"quickstart_{name}"]["annotation"] = str(tmp_path / f"{name}.jsonl")
        (tmp_path / f"{name}.jsonl").write_text(lines[0] + "\n")
    few = {name: meta[name] for name in ("quickstart_single", "quickstart_text")}
    (tmp_path / "meta.json").write_text(json.dumps(few))
    command = [sys.executable, str(ROOT / "examples" / "quickstart" / "ask.py"), str(made / "hf")]
    command += [str(tmp_path / "meta.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "0 of 2 right (0.0%): quickstart_single 0/1, quickstart_text 0/1" in done.stdout
    assert "rope_pos_id_version default" in done.stdout  # as the checkpoint states
    assert "error: fewer than 90%" in done.stderr


def test_checkpoints_are_asked_with_the_positions_they_know(made: Path) -> None:
    plain = InternVLConfig.from_folder(made / "hf")
    random = replace(plain, v2pe=V2PESettings("v2pe_rnd"))
    fixed = replace(plain, v2pe=V2PESettings("v2pe_fix", 2))
    assert inference_policy(plain) == StridePolicy("default")
    assert inference_policy(random) == StridePolicy("v2pe_fix", 4)  # as 64 is to InternVL2's 256 tokens a tile
    assert inference_policy(random, 1) == StridePolicy("v2pe_fix", 1)
    assert inference_policy(fixed) == StridePolicy("v2pe_fix", 2)
    with pytest.raises(ConfigError, match="stride 4 was asked for.*default"):
        inference_policy(plain, 4)


def test_later_questions_see_the_answers_generated_before(made: Path) -> None:
    ask = example("ask")
    dataset = next(d for d in read_data_list(made / "data" / "meta.json") if d.name == "quickstart_turns")
    sample = dataset.read(0)
    seen: list[list[tuple[str, str]]] = []

    def answer(turns: list[tuple[str, str]]) -> str:
        seen.append(list(turns))
        return f"answer {len(seen)}"

    asked = list(ask.conversation(sample, dataset.name, answer, "astronaut"))
    assert [item.question for item in asked] == ["What is in the picture?", "Is the picture in colour or in grey?"]
    assert [item.expected for item in asked] == [text for _, text in sample.conversations[1::2]]
    assert [len(turns) for turns in seen] == [1, 3] and seen[1][1] == ("gpt", "answer 1")


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert example("make_data").main([str(tmp_path)]) == 1
    assert example("make_model").main([str(tmp_path), "--texts", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count(f"error: {tmp_path} is in use") == 2
    script = str(ROOT / "scripts" / "quickstart.sh")
    done = subprocess.run(["sh", script, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and f"error: {tmp_path} is in use" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
