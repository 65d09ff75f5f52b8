"""Downloads that did not end, and folders of the hub: what is missing is named, with what to do.

The kind of fault: a downloader makes a file's room first and fills it later; cut off, it leaves zeros, which load.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.checkpoint.hf.folder import INDEX, SINGLE, HFWeights
from megatron_v2pe.checkpoint.hf.random_weights import write_checkpoint
from megatron_v2pe.checkpoint.hf.side_files import check_side_files
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.tokenizer_files import load_pieces
from megatron_v2pe.models.config import read_config

SECOND = "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path):
    """Shards of two tensors with their index."""
    write_checkpoint(tmp_path, {}, {"a": torch.zeros(4, 4), "b": torch.ones(4, 4)}, shards=2)
    return tmp_path


@pytest.mark.parametrize("ending", [".incomplete", ".part", ".crdownload"])
def test_a_shard_that_is_not_there_yet(sharded, ending):
    (sharded / SECOND).rename(sharded / (SECOND + ending))
    with pytest.raises(CheckpointError, match=rf"missing; .* \({SECOND}{ending} lies beside it\).* download goes on"):
        HFWeights(sharded)


def test_a_single_file_that_is_not_there_yet(tmp_path):
    (tmp_path / f"{SINGLE}.part").write_bytes(b"1")
    with pytest.raises(CheckpointError, match=rf"{SINGLE}: missing \({SINGLE}.part lies beside it\)"):
        HFWeights(tmp_path)


def test_room_that_is_made_and_not_filled_yet(sharded):
    """aria2 gives a file its name and size first; its own file goes when all is there."""
    (sharded / f"{SECOND}.aria2").write_bytes(b"1")
    with pytest.raises(CheckpointError, match=rf"{SECOND}: its download is not at its end \({SECOND}.aria2 lies"):
        HFWeights(sharded)


@pytest.mark.parametrize("left", [f"{SECOND}.incomplete", ".cache/huggingface/download/x.incomplete"])
def test_whole_files_beside_what_is_left_of_an_attempt(sharded, left):
    (sharded / left).parent.mkdir(parents=True, exist_ok=True)
    (sharded / left).write_bytes(b"1")
    assert set(HFWeights(sharded).layout.places()) == {"a", "b"}


def test_matrices_of_zeros_are_told(sources, tmp_path, caplog):
    source = tmp_path / "hf"
    shutil.copytree(sources["reference"], source)
    hf_to_mcore(source, tmp_path / "whole")
    assert "zeros and nothing else" not in caplog.text
    for path in source.glob("*.safetensors"):
        state = load_file(path)
        for name in state:
            if name.endswith(("w2.weight", "norm1.bias")):
                state[name].zero_()
        save_file(state, path, metadata={"format": "pt"})
    hf_to_mcore(source, tmp_path / "mcore")
    assert "zeros and nothing else in language_model.model.layers.0.feed_forward.w2.weight, " in caplog.text
    assert "and 1 more; if it was not made so" in caplog.text and "norm1.bias" not in caplog.text


def test_a_file_of_another_name_that_may_hold_all(tmp_path):
    save_file({"a": torch.zeros(4, 4)}, tmp_path / "internvl.safetensors")
    with pytest.raises(CheckpointError, match=rf"but internvl.safetensors: .* whole model, name it {SINGLE}"):
        HFWeights(tmp_path)


def test_a_folder_of_the_cache_of_the_hub(tmp_path):
    home = tmp_path / "models--OpenGVLab--InternVL2-2B"
    for part in ("blobs", "snapshots/0123abcd"):
        (home / part).mkdir(parents=True)
    (home / "blobs" / "c").write_text("{}")
    revision = home / "snapshots" / "0123abcd"
    (revision / "config.json").symlink_to("../../blobs/c")
    with pytest.raises(ConfigError, match="hub's cache, give the revision: .*snapshots/0123abcd"):
        read_config(home)
    assert read_config(revision) == {}
    (revision / SINGLE).symlink_to("../../blobs/w")
    with pytest.raises(ConfigError, match=r"blobs/w, which does not exist; .* the same download goes on"):
        read_config(revision)


def test_a_pointer_in_place_of_the_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1477754\n")
    with pytest.raises(ConfigError, match=r"a Git LFS pointer of \d+ bytes, not the tokenizer; run `git lfs pull`"):
        load_pieces(path, ConfigError)


def test_tokens_that_are_null_are_none(tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": None}))
    with pytest.raises(CheckpointError, match=r"tokenizer.model: missing; special_tokens_map.json beside it"):
        check_side_files(tmp_path, 10)


def test_a_second_download_of_the_index_is_told(sharded, caplog):
    shutil.copy(sharded / INDEX, sharded / "model.safetensors.index (1).json")
    HFWeights(sharded)
    assert "not read: model.safetensors.index (1).json" in caplog.text
