"""Conversions are kept in one place for all tools, found again, and made once by processes that want one at once.

Kind of fault: every run converts a copy of its own, or one process replaces what another is reading.
"""

from __future__ import annotations

import os
import shutil
import threading
import time

import pytest

from megatron_v2pe.base.run_lock import FolderLock
from megatron_v2pe.checkpoint import conversions as conversions_module
from megatron_v2pe.checkpoint.conversions import CONVERTED, CONVERTED_VARIABLE, conversions, converted
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy


@pytest.fixture
def source(golden, tmp_path):
    return write_checkpoint_copy(golden / "reference_checkpoint", tmp_path / "model")


@pytest.fixture
def made(monkeypatch):
    """Folders that were converted, in order."""
    found, convert = [], conversions_module.hf_to_mcore

    def watched(source, folder, overwrite):
        found.append(folder)
        convert(source, folder, overwrite=overwrite)

    monkeypatch.setattr(conversions_module, "hf_to_mcore", watched)
    return found


def test_found_again_however_the_folder_is_named(source, made, tmp_path, monkeypatch):
    place = tmp_path / "converted"
    first = converted(source, place)
    os.symlink(source, tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    for name in (source, tmp_path / "link", type(source)("model"), tmp_path / "x" / ".." / "model"):
        if ".." in str(name):
            (tmp_path / "x").mkdir()
        assert converted(name, place) == first
    assert made == [first]


def test_changed_weights_and_damaged_conversions_are_converted_again(source, made, tmp_path):
    place = tmp_path / "converted"
    first = converted(source, place)
    (first / "hf" / "config.json").write_text("{}")
    assert converted(source, place) == first and len(made) == 2
    weights = next(source.glob("*.safetensors"))
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert converted(source, place) != first and len(made) == 3


def test_what_an_earlier_version_kept_beside_a_run_is_used(source, made, tmp_path):
    older = converted(source, tmp_path / "run" / "converted")
    assert converted(source, tmp_path / "new", [tmp_path / "run" / "converted"]) == older and len(made) == 1
    assert not (tmp_path / "new").exists()


def test_two_at_once_convert_once(source, made, tmp_path, monkeypatch):
    monkeypatch.setattr(conversions_module, "_POLL_SECONDS", 0.05)
    place, found = tmp_path / "converted", []
    lock = FolderLock(place / ".converting", "a conversion")
    lock.take()
    other = threading.Thread(target=lambda: found.append(converted(source, place)))
    other.start()
    time.sleep(0.3)
    assert not found and not made  # it waits for who converts
    conversions_module.hf_to_mcore(source, place / conversions_module._fingerprint(source), overwrite=True)
    before = (made[0] / "checkpoint.json").stat().st_ino
    lock.release()
    other.join(300)
    assert found == made and len(made) == 1 and (made[0] / "checkpoint.json").stat().st_ino == before


def test_the_place(monkeypatch, tmp_path):
    monkeypatch.delenv(CONVERTED_VARIABLE, raising=False)
    assert str(conversions(None)) == CONVERTED == "work_dirs/converted"
    monkeypatch.setenv(CONVERTED_VARIABLE, str(tmp_path))
    assert conversions(None) == tmp_path and str(conversions("named")) == "named"


def test_a_place_that_cannot_be_written_is_refused_with_the_flag(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=f"file/x: no folder that can be written.*--converted-dir.*{CONVERTED_VARIABLE}"
    ):
        converted(source, tmp_path / "file" / "x")
    place = tmp_path / "kept"
    first = converted(source, place)
    place.chmod(0o555)  # one that is found needs no writing
    try:
        assert converted(source, place) == first
    finally:
        place.chmod(0o755)
    shutil.rmtree(place)
