"""The long-context example's parts, without its training: documents, recipe, comparison and refusals as announced."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import IGNORE_INDEX, TrainingDocument
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.recipes.long_context import long_context
from megatron_v2pe.recipes.registry import RECIPES

ROOT = Path(__file__).resolve().parents[2]
TOKENS, DOCUMENTS = 1024, 3


def example(name: str, folder: str = "long_context") -> ModuleType:
    """Import one of the examples' scripts under a name of its own: both folders hold a `make_data`."""
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", ROOT / "examples" / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set and the model."""
    out = tmp_path_factory.mktemp("long_context")
    sizes = ["--tokens", str(TOKENS), "--documents", str(DOCUMENTS)]
    assert example("make_data").main([str(out / "data"), *sizes]) == 0
    texts = str(out / "data" / "texts")
    assert example("make_model", "quickstart").main([str(out / "hf"), "--texts", texts]) == 0
    return out


def documents(made: Path) -> list[TrainingDocument]:
    """Every document as training encodes it."""
    recipe = long_context()
    model = InternVLConfig.from_folder(made / "hf")
    facts = ModelFacts(model.tile_size, model.tokens_per_tile)
    policy = recipe.v2pe.policy(recipe.train.seed)
    encoder = DocumentEncoder(recipe.data, Tokenizer.from_folder(made / "hf"), facts, policy, recipe.train.seed)
    (dataset,) = read_data_list(made / "data" / "meta.json")
    return [encoder.document(dataset, line, epoch=0, number=line) for line in range(len(dataset))]


def test_documents_are_as_long_as_asked_and_hardly_any_of_it_is_learned(made: Path) -> None:
    found = documents(made)
    assert len(found) == DOCUMENTS
    for document in found:
        assert TOKENS - 300 < document.num_tokens <= TOKENS
        assert 2 <= int((document.labels != IGNORE_INDEX).sum()) <= 16
        assert document.labels[-1] != IGNORE_INDEX  # the question is the last thing but its answer
        assert document.num_tiles == len(document.images) > 5  # pictures of one tile


def test_there_is_one_placeholder_per_picture_and_the_question_is_about_one_of_them(made: Path) -> None:
    make_data = example("make_data")
    (dataset,) = read_data_list(made / "data" / "meta.json")
    for line in range(len(dataset)):
        sample = dataset.read(line)
        (_, text), (_, answer) = sample.conversations
        assert text.count("<image>") == len(sample.images)
        assert all(Path(image).is_file() for image in sample.images)
        asked = text.split("\n")[-1]
        number = int(asked.split("Image-")[1].rstrip("?"))
        assert make_data.ANSWERS[Path(sample.images[number - 1]).stem] == answer


def test_lengths_are_those_of_training(made: Path) -> None:
    make_data = example("make_data")
    tokenizer = Tokenizer.from_folder(made / "hf")
    lines = (made / "data" / "annotation" / "long_context.jsonl").read_text().splitlines()
    measured = [make_data.measure(json.loads(line), tokenizer).tokens for line in lines]
    assert measured == [document.num_tokens for document in documents(made)]


def test_the_recipe_shares_each_document_between_two_processes() -> None:
    recipe = RECIPES["long_context"]()
    recipe.validate(world_size=2)
    assert (recipe.parallel.context_parallel_size, recipe.parallel.data_parallel_size(2)) == (2, 1)
    assert recipe.train.recompute_granularity == "full" and not recipe.train.recompute_attention
    with pytest.raises(ConfigError, match="world size 1 is not a multiple"):
        recipe.validate(world_size=1)


@pytest.mark.parametrize("loss, status", [(2.0, 0), (2.00001, 0), (2.001, 1)])
def test_losses_are_compared_to_a_hundred_thousandth(
    loss: float, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"iteration": 1, "loss": 2.0, "tokens": 1000, "seconds": 0.5, "memory_gib": 0.7}
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(json.dumps(row) + "\n" + json.dumps({**row, "iteration": 2}) + "\n")
    two.write_text(json.dumps({**row, "loss": loss}) + "\n")
    assert example("compare").main(["1 process", str(one), "2 processes", str(two)]) == status
    said = capsys.readouterr()
    assert "2,000 tokens/s" in said.out and ("error: losses differ" in said.err) == bool(status)


def test_a_comparison_of_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("")
    assert example("compare").main(["a", str(file), "b", str(file)]) == 2
    assert example("compare").main(["a", str(file), "b", str(tmp_path / "none.jsonl")]) == 2
    file.write_text('{"iteration": 1}\n')
    assert example("compare").main(["a", str(file), "b", str(file)]) == 2
    file.write_text('{"iteration": 1, "loss": NaN, "tokens": 1, "seconds": 1, "memory_gib": 1}\n')
    assert example("compare").main(["a", str(file), "b", str(file)]) == 2
    errors = capsys.readouterr().err
    assert "no step in common" in errors and "none.jsonl" in errors and "metrics.jsonl:1: not a row" in errors
    assert "metrics.jsonl:1: not valid JSON: NaN is no number" in errors


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert example("make_data").main([str(tmp_path)]) == 1
    assert example("make_data").main([str(tmp_path / "new"), "--tokens", "100"]) == 1
    errors = capsys.readouterr().err
    assert f"error: {tmp_path} is in use" in errors and "--tokens must be 512 or more" in errors
    script = str(ROOT / "examples" / "long_context" / "run.sh")
    for words, status, message in (
        ((str(tmp_path),), 1, f"error: {tmp_path} is in use"),
        ((str(tmp_path / "new"), "--tokens", "8k"), 2, "error: --tokens needs a whole number"),
    ):
        done = subprocess.run(["sh", script, *words], capture_output=True, text=True, timeout=600)
        assert done.returncode == status and message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
