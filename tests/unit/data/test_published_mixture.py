"""The published 32K mixture as a data list: complete, with the published numbers, paths and folders."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from helpers.shared import shared_path
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.mixture import repeated_length
from megatron_v2pe.data.published_layout import published_folder
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.workshop.checking.check import check_data_list
from megatron_v2pe.workshop.checking.report import as_text, downloads

LIST = Path(__file__).parents[3] / "examples" / "internvl2_2b_v2pe_32k" / "annotation_train_32k.json"
PLACE = "dataset/annotation_train_32k.json"
SAMPLE = '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n'


@pytest.fixture
def entries():
    return json.loads(LIST.read_text())


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty folder with the list where the README says to copy it."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / PLACE).write_bytes(LIST.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_as_many_data_sets_lines_and_samples_as_published(entries):
    assert len(entries) == 45
    assert sum(entry["length"] for entry in entries.values()) == 1_526_400
    samples = sum(repeated_length(entry["length"], entry["repeat_time"]) for entry in entries.values())
    assert samples == 2_726_861  # published: about 2.73 million
    assert all(entry["data_augment"] is True for entry in entries.values())
    patches = {name: entry["max_dynamic_patch"] for name, entry in entries.items() if "max_dynamic_patch" in entry}
    assert sorted(patches.values()) == [3, 3, 3, 3, 5, 5] and all("_nh_" in name for name in patches)


def test_the_numbers_are_those_of_the_specification(entries):
    """Appendix D of the specification, read as it is written: `task repeat x lines`, groups by line."""
    text = shared_path("v2pe_behaviour.md").read_text()
    appendix = text[text.index("## Appendix D.") : text.index("## Appendix E.")]
    names = {
        "long_vqa image": "train_long_vqa_{}",
        "long_vqa paste": "train_long_vqa_{}",
        "milebench": "train_milebench_{}",
    }
    stated = {}
    for group, content in re.findall(r"^\* ([\w ]+): (.*)$", appendix, re.MULTILINE):
        for task, repeat, lines, rest in re.findall(r"(\w+) ([\d.]+) x (\d+)([^;.]*)", content):
            patch = re.search(r"max_dynamic_patch (\d+)", rest)
            name = names.get(group, "{}").format(task)
            stated[name] = (float(repeat), int(lines), int(patch[1]) if patch else None)
    ours = {
        name: (float(entry["repeat_time"]), entry["length"], entry.get("max_dynamic_patch"))
        for name, entry in entries.items()
    }
    assert ours == stated


def test_every_path_lies_in_a_published_folder(entries):
    for name, entry in entries.items():
        assert published_folder(entry["root"].rstrip("/")) + "/" == entry["root"]
        folder, file = os.path.split(entry["annotation"])
        assert published_folder(folder) == folder
        assert file == ("train_milebench_gpr.jsonl" if name == "GPR1200" else f"{name}.jsonl")
    assert entries["train_long_vqa_clevr"]["root"] == "dataset/image/long_vqa/paste/clevr/train/"
    assert entries["train_milebench_clevr"]["root"] == "dataset/image/milebench/clevr/train/"


def test_the_recipes_read_it_where_it_is_copied_to(checkout, entries):
    for name in ("internvl2_2b_v2pe_32k", "internvl2_2b_baseline_32k"):
        assert RECIPES[name]().data.meta_path == PLACE
    for entry in entries.values():
        annotation = Path(entry["annotation"])
        annotation.parent.mkdir(parents=True, exist_ok=True)
        annotation.write_text(SAMPLE)
    datasets = read_data_list(PLACE)
    assert [dataset.name for dataset in datasets] == list(entries)
    assert [dataset.repeat_time for dataset in datasets] == [entry["repeat_time"] for entry in entries.values()]
    assert all(check.complete for check in check_data_list(PLACE))


def test_the_checker_names_every_file_where_nothing_is_there(checkout, entries):
    checks = check_data_list(PLACE)
    assert len(checks) == 45 and all(check.annotation_missing and not check.complete for check in checks)
    text = as_text(PLACE, checks)
    for entry in entries.values():
        assert f"missing: {entry['annotation']} (the annotation file)" in text
    found = downloads(checks)
    assert found.published == {
        "dataset/annotation/long_vqa_32k": 17,
        "dataset/annotation/milebench_16k": 14,
        "dataset/annotation/long_mr_32k": 8,
        "dataset/annotation/milebench_nh": 6,
    }
    assert not found.others and "45 of 45 data sets incomplete" in text
