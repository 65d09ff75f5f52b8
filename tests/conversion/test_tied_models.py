"""A tied model converts with and without an output projection in its HF folder, which has to be its embedding.

The kinds of fault: a copy is dropped, so that the folder comes back short of a tensor; a tensor that is another one
is taken for it, and the model computes other logits than its publisher's.
"""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf
from megatron_v2pe.checkpoint.hf.repack import hf_to_hf
from megatron_v2pe.checkpoint.vet import vet_checkpoint
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.models.presets import preset_config, reduced
from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder

HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
KEY = "language_model.embedding.word_embeddings.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One tied model three times: as transformers writes it, with a copy, and with an output projection of its own."""
    root = tmp_path_factory.mktemp("tied")
    config = reduced(preset_config("InternVL3_5-1B"))
    config["llm_config"]["tie_word_embeddings"] = True
    config["image_token_id"] = 7  # no tokenizer says it here
    found = {}
    for name in ("alone", "copy", "other"):
        found[name] = root / name
        write_hf_folder(found[name], config, shards=1)
        weights = load_file(found[name] / "model.safetensors")
        if name != "alone":
            weights[HEAD] = weights[EMBEDDING].clone()
        if name == "other":
            weights[HEAD][3, 5] += 1
        save_file(weights, found[name] / "model.safetensors", metadata={"format": "pt"})
    return found


@pytest.mark.parametrize("name", ["alone", "copy"])
def test_it_comes_back_as_it_was_and_is_stored_once(folders, name, tmp_path):
    hf_to_mcore(folders[name], tmp_path / "mcore")
    stored = vet_checkpoint(tmp_path / "mcore").tensors
    assert KEY in stored and "language_model.output_layer.weight" not in stored
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    for path in folders[name].iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name
    assert (HEAD in load_file(tmp_path / "back" / "model.safetensors")) is (name == "copy")


def test_the_other_layout_needs_no_copy(folders, tmp_path):
    hf_to_hf(folders["copy"], tmp_path / "native", layout="native")
    native = load_file(tmp_path / "native" / "model.safetensors")
    assert not [name for name in native if "lm_head" in name]
    assert len(native) > 10


def test_a_projection_that_is_no_copy_is_refused(folders, tmp_path):
    with pytest.raises(CheckpointError, match=f"{HEAD} is not {EMBEDDING}, though tie_word_embeddings"):
        hf_to_mcore(folders["other"], tmp_path / "mcore")
    assert not (tmp_path / "mcore").exists()


def test_a_native_folder_that_transformers_calls_tied_is_told_where_to_say_otherwise(folders, tmp_path):
    hf_to_hf(folders["alone"], tmp_path / "native", layout="native")
    (tmp_path / "native" / "checksums.json").unlink()
    weights = load_file(tmp_path / "native" / "model.safetensors")
    weights[HEAD] = weights[EMBEDDING] + 1
    save_file(weights, tmp_path / "native" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"state false there .* \(at the top: transformers 5 writes true"):
        hf_to_mcore(tmp_path / "native", tmp_path / "mcore")
