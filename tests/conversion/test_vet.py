"""A checkpoint folder from outside is read only when it is whole and asks for nothing but harmless classes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch

from helpers.sealing import seal
from megatron_v2pe.checkpoint.hf.api import mcore_to_hf
from megatron_v2pe.checkpoint.vet import vet_checkpoint
from megatron_v2pe.errors import CheckpointError


@pytest.fixture
def checkpoint(converted, tmp_path):
    """A copy of a converted folder to damage."""
    folder = tmp_path / "mcore"
    shutil.copytree(converted["odd"], folder)
    return folder


def refused(checkpoint, *words, sealed=True):
    """Neither vetting nor conversion accepts the folder, even where its checksums are right; no HF folder appears."""
    target = checkpoint.parent / "hf"
    if sealed:
        seal(checkpoint)
    for action in (lambda: vet_checkpoint(checkpoint), lambda: mcore_to_hf(checkpoint, target)):
        with pytest.raises(CheckpointError) as caught:
            action()
        for word in words:
            assert word in str(caught.value)
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def read_metadata(path):
    """PyTorch's description of a checkpoint made here."""
    return pickle.loads(path.read_bytes())


class Malicious:
    """Unpickled, this writes a file."""

    def __init__(self, command, *arguments):
        self.call = (command, arguments)

    def __reduce__(self):
        return self.call


def test_a_whole_checkpoint_passes(checkpoint):
    assert "vision_projection.norm.weight" in vet_checkpoint(checkpoint).tensors


@pytest.mark.parametrize("name", [".metadata", "metadata.json", "common.pt", "checkpoint.json"])
def test_a_missing_part(checkpoint, name):
    (checkpoint / name).unlink()
    refused(checkpoint, f": {name} is missing")


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        vet_checkpoint(tmp_path / "nowhere")


def test_a_truncated_or_missing_data_file(checkpoint):
    file = checkpoint / "__0_0.distcp"
    size = file.stat().st_size
    with file.open("rb+") as stream:
        stream.truncate(size - 1)
    refused(checkpoint, "__0_0.distcp", "truncated", str(size), str(size - 1))
    file.unlink()
    refused(checkpoint, "__0_0.distcp", "missing")


@pytest.mark.parametrize("command", [os.mkdir, eval], ids=["os.mkdir", "eval"])
def test_a_malicious_metadata_is_refused_and_not_run(checkpoint, tmp_path, command):
    victim = tmp_path / "victim"
    argument = str(victim) if command is os.mkdir else f"__import__('os').mkdir({str(victim)!r})"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Malicious(command, argument)))
    refused(checkpoint, ".metadata", "refused", command.__name__)
    assert not victim.exists()


def test_a_malicious_object_inside_good_metadata_is_refused(checkpoint, tmp_path):
    metadata = read_metadata(checkpoint / ".metadata")
    metadata.planner_data = Malicious(os.mkdir, str(tmp_path / "victim"))
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    refused(checkpoint, ".metadata", "refused", "mkdir")


def test_a_malicious_common_file_is_refused(checkpoint, tmp_path):
    victim = tmp_path / "victim"
    torch.save({"args": Malicious(os.mkdir, str(victim))}, checkpoint / "common.pt")
    refused(checkpoint, "common.pt", "refused", "mkdir")
    (checkpoint / "common.pt").write_bytes(pickle.dumps(Malicious(os.mkdir, str(victim))))
    refused(checkpoint, "common.pt", "a pickle where a zip belongs")
    with zipfile.ZipFile(checkpoint / "common.pt", "w") as archive:
        archive.writestr("common/data.pkl", pickle.dumps({}))
        archive.writestr("other/data.pkl", pickle.dumps({}))
    refused(checkpoint, "common.pt", "expected one data.pkl")
    assert not victim.exists()


def test_a_malicious_tensor_is_refused(checkpoint, tmp_path):
    """The data file holds a pickle per tensor; PyTorch reads them with weights only."""
    metadata = read_metadata(checkpoint / ".metadata")
    index, info = next(item for item in metadata.storage_data.items() if item[0].fqn == "vision_projection.norm.bias")
    victim = tmp_path / "victim"
    torch.save(Malicious(os.mkdir, str(victim)), tmp_path / "bad.pt")
    content = (tmp_path / "bad.pt").read_bytes()
    (tmp_path / "bad.pt").unlink()
    with (checkpoint / "__0_0.distcp").open("rb+") as stream:
        info.offset, info.length = stream.seek(0, os.SEEK_END), len(content)
        stream.write(content)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    (checkpoint / "checksums.json").unlink()
    (checkpoint / "checkpoint.json").write_text(json.dumps({"format_version": 1, "kind": "converted", "iteration": 0}))
    vet_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="vision_projection.norm.bias.* asks for .*mkdir"):
        mcore_to_hf(checkpoint, tmp_path / "hf")
    assert index.fqn and not victim.exists() and not (tmp_path / "hf").exists()


def test_common_state_with_tensors_passes(checkpoint):
    torch.save({"step": torch.ones(3), "lr": 0.1, "shape": torch.Size([1])}, checkpoint / "common.pt")
    vet_checkpoint(seal(checkpoint))


def test_damaged_files(checkpoint):
    good = (checkpoint / ".metadata").read_bytes()
    (checkpoint / ".metadata").write_bytes(good[: len(good) // 2])
    refused(checkpoint, ".metadata", "damaged")
    (checkpoint / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    refused(checkpoint, ".metadata", "holds a dict")


def test_a_place_outside_the_folder(checkpoint):
    metadata = read_metadata(checkpoint / ".metadata")
    next(iter(metadata.storage_data.values())).relative_path = "../secret"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    refused(checkpoint, ".metadata", "refused", "../secret")


@pytest.mark.parametrize(
    "name, content, word",
    [
        ("checkpoint.json", {"format_version": 99}, "format version 99"),
        ("checkpoint.json", [], "holds a list"),
        ("metadata.json", {"sharded_backend": "zarr"}, "'zarr'"),
    ],
)
def test_another_format(checkpoint, name, content, word):
    (checkpoint / name).write_text(json.dumps(content))
    refused(checkpoint, name, word)


def test_tensors_that_do_not_fit_the_config(checkpoint):
    path = checkpoint / "hf" / "config.json"
    config = json.loads(path.read_text())
    config["llm_config"]["vocab_size"] = 500
    path.write_text(json.dumps(config))
    seal(checkpoint)
    with pytest.raises(
        CheckpointError, match=r"layout.json: .* has shape \[509, 64\], config.json asks for \[500, 64\]"
    ):
        mcore_to_hf(checkpoint, checkpoint.parent / "out")
    metadata = read_metadata(checkpoint / ".metadata")
    config["llm_config"]["vocab_size"] = 509
    path.write_text(json.dumps(config))
    entries = metadata.state_dict_metadata
    entries["a.stranger"] = entries.pop("vision_projection.norm.bias")
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    for index in metadata.storage_data:
        if index.fqn == "vision_projection.norm.bias":
            object.__setattr__(index, "fqn", "a.stranger")
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    seal(checkpoint)
    words = "missing: vision_projection.norm.bias; 1 tensors are not part of this architecture: a.stranger"
    with pytest.raises(CheckpointError, match=words):
        mcore_to_hf(checkpoint, checkpoint.parent / "out")


def test_a_shard_that_is_not_there_is_missed(checkpoint):
    """Half of a tensor's rows are gone from the metadata."""
    metadata = read_metadata(checkpoint / ".metadata")
    key = "language_model.decoder.layers.0.mlp.linear_fc1.weight"
    metadata.state_dict_metadata[key].chunks.pop()
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    seal(checkpoint)
    with pytest.raises(CheckpointError, match=f"{key}: shards hold 0 of 8192 values"):
        mcore_to_hf(checkpoint, checkpoint.parent / "out")
    assert not (checkpoint.parent / "out").exists()


def test_a_layout_that_points_elsewhere_is_refused(checkpoint):
    path = checkpoint / "hf" / "layout.json"
    layout = json.loads(path.read_text())
    layout["shards"][0]["file"] = "../outside.safetensors"
    path.write_text(json.dumps(layout))
    seal(checkpoint)
    with pytest.raises(CheckpointError, match="is no plain file name"):
        mcore_to_hf(checkpoint, checkpoint.parent / "out")
