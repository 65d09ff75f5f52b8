"""The checker finds what is missing, damaged or malformed, names it by file and line, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from helpers.data_cases import every_kind, turns
from helpers.shared import shared_path
from megatron_v2pe.data.published_layout import FOLDERS, look_for_folders, published_folder
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.workshop.checking.check import check_data_list
from megatron_v2pe.workshop.checking.report import as_text, downloads

TOOLS = Path(__file__).parents[3] / "tools"


@pytest.fixture
def case(tmp_path, tokenizer):
    return every_kind(tmp_path / "data", tokenizer)


def write(folder, *rows, name="own", **entry):
    """Write a data list of one data set; rows that are text are written as they are."""
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps({"conversations": turns("what"), **row}) for row in rows]
    (folder / "own.jsonl").write_text("\n".join(lines) + "\n")
    entry = {"annotation": str(folder / "own.jsonl"), "data_augment": True, "repeat_time": 1, **entry}
    (folder / "own.json").write_text(json.dumps({name: entry}))
    return folder / "own.json"


@pytest.mark.parametrize("full", [False, True])
def test_a_complete_list(case, full):
    checks = {check.name: check for check in check_data_list(case.meta, full=full)}
    rows = [json.loads(line) for line in (case.meta.parent / "all.jsonl").read_text().splitlines()]
    named = [
        name for row in rows for name in ([row["image"]] if isinstance(row.get("image"), str) else row.get("image", []))
    ]
    ours = checks["all"]
    assert (ours.lines, ours.images, ours.files) == (len(rows), len(named), len(set(named)))
    assert (checks["more"].lines, checks["more"].images, checks["more"].files) == (4, 5, 5)
    assert all(check.complete and check.num_damaged == (0 if full else None) for check in checks.values())
    assert "nothing is missing" in as_text("list", list(checks.values()))


def test_missing_files_are_named_with_their_first_line_and_counted_once(case):
    root = case.meta.parent / "image"
    (root / "3.png").unlink()
    (root / "4.png").unlink()
    (root / "4.png").symlink_to(root / "nowhere.png")
    for frame in (root / "frames").iterdir():
        frame.unlink()
    one, more = check_data_list(case.meta)
    rows = [json.loads(line).get("image", []) for line in (case.meta.parent / "all.jsonl").read_text().splitlines()]
    first = {name: next(n for n, names in enumerate(rows, 1) if name in names) for name in ("3.png", "4.png")}
    assert {(fault.path, fault.line) for fault in one.missing} == {(f"{root}/{name}", first[name]) for name in first}
    assert one.missing[0].line < one.missing[1].line and one.missing[0].reason == "no such file"
    assert (one.num_missing, one.missing_folders) == (2, {str(root): 2})
    assert [(fault.path, fault.line) for fault in more.missing] == [(f"{root}/frames/", 1), (f"{root}/3.png", 7)]
    text = as_text("list", [one, more])
    assert f"{case.meta.parent}/all.jsonl:{one.missing[0].line}: {one.missing[0].path}: no such file" in text
    assert f"all: 2 files missing: 2 in {root}/" in text and "2 of 2 data sets incomplete" in text


def test_folders_that_are_missing(tmp_path):
    names = [{"image": f"a/{number}.png"} for number in range(8)]
    (check,) = check_data_list(write(tmp_path / "data", *names, root="dataset/image/long_mr/train"), most_kept=3)
    assert check.num_missing == 8 and len(check.missing) == 3
    assert {fault.reason for fault in check.missing} == {"no such folder"}
    assert downloads([check]).published == {"dataset/image/long_mr/train": 8}
    text = as_text("list", [check])
    assert re.search(
        r"huggingface.co/datasets/OpenGVLab/V2PE-Data into\n +dataset/image/long_mr/train/ +\(8 files\)", text
    )


def test_bad_lines(tmp_path):
    rows = [{}, "{", "", "[1]", {"image": 3}, {"conversations": []}, {"video": "clip.mp4", "clip": [1]}]
    (check,) = check_data_list(write(tmp_path / "data", *rows))
    assert (check.lines, check.num_bad_lines, check.images) == (6, 5, 0) and not check.complete
    assert [fault.line for fault in check.bad_lines] == [2, 4, 5, 6, 7]
    text = as_text("list", [check])
    assert (
        f"{tmp_path}/data/own.jsonl:2: the line: not valid JSON" in text
        and "own.jsonl:5: image: expected a path" in text
    )


def test_paths_are_those_of_training(tmp_path):
    """Roots of one and of several images, images of the web, absolute paths."""
    address = "https://example.org/a.png"
    rows = [{"image": "a.png"}, {"image": ["a.png", "/mnt/none/b.png"]}, {"image": address}, {"video": "frames/"}]
    folder = tmp_path / "data"
    (check,) = check_data_list(write(folder, *rows, root="one", root2="two", http_root="web"))
    paths = [fault.path for fault in check.missing]
    assert paths[:3] == ["one/a.png", "/mnt/none/b.png", "two/a.png"] and paths[4] == "one/frames/"
    assert paths[3] == f"web/{hashlib.sha256(address.encode()).hexdigest()}"
    (check,) = check_data_list(write(folder, {"image": address}, root="one"))
    assert "has no http_root" in check.bad_lines[0].reason


def test_damaged_headers_are_found_where_asked_for(case):
    root = case.meta.parent / "image"
    (root / "2.png").write_bytes(b"no image")
    (root / "clip.gif").write_bytes(b"GIF89a")
    assert all(check.complete for check in check_data_list(case.meta))
    one, more = check_data_list(case.meta, full=True)
    assert one.num_damaged == 1 and "2.png: not an image (8 bytes)" in one.damaged[0].reason
    assert [(fault.path, fault.line) for fault in more.damaged] == [(f"{root}/clip.gif", 3)]
    assert "all: 1 damaged file" in as_text("list", [one, more])


def test_an_entry_that_cannot_be_used_does_not_hide_the_others(case):
    lists = json.loads(case.meta.read_text())
    lists["gone"] = {**lists["all"], "annotation": "gone/none.jsonl"}
    lists["typo"] = {**lists["all"], "repeat_tmie": 1}
    lists["text"] = "no object"
    (case.meta.parent / "empty.jsonl").write_text("\n")
    lists["empty"] = {**lists["all"], "annotation": str(case.meta.parent / "empty.jsonl")}
    case.meta.write_text(json.dumps(lists))
    checks = {check.name: check for check in check_data_list(case.meta)}
    assert checks["all"].complete and checks["more"].complete
    assert checks["gone"].annotation_missing and "repeat_tmie" in checks["typo"].problem
    assert "expected an object" in checks["text"].problem and "holds no samples" in checks["empty"].problem
    text = as_text("list", list(checks.values()))
    assert "gone: missing: gone/none.jsonl (the annotation file)" in text and "gone/   (1 file)" in text
    assert "4 of 6 data sets incomplete" in text


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_list_that_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "list.json").write_text(content)
    with pytest.raises(
        ConfigError, match=r"list.json: (cannot be read|not valid JSON|holds a list|expected an object)"
    ):
        check_data_list(tmp_path / "list.json")


def test_processes_find_the_same(case, monkeypatch):
    monkeypatch.setattr("megatron_v2pe.workshop.checking.named_files.LINES_AT_ONCE", 4)
    (case.meta.parent / "image" / "3.png").unlink()
    (case.meta.parent / "image" / "5.png").write_bytes(b"")
    with open(case.meta.parent / "all.jsonl", "a") as stream:
        stream.write("{\n")
    alone = check_data_list(case.meta, full=True)
    assert [(check.num_missing, check.num_damaged, check.num_bad_lines) for check in alone] == [(1, 1, 1), (1, 1, 0)]
    assert [asdict(check) for check in check_data_list(case.meta, workers=2, full=True)] == [asdict(c) for c in alone]


def test_the_published_layout(tmp_path):
    """The tree of the published README, read as it is drawn."""
    text = shared_path("seed_readme.md").read_text().replace("\xa0", " ")
    drawn, path, leaves = text[text.index("    dataset\n    ├") :], [], []
    for line in drawn[: drawn.index("```")].rstrip().splitlines()[1:]:
        marks, name = re.fullmatch(r"    ((?:[│ ]   )*[├└]── )(\S+)", line).groups()
        depth = len(marks) // 4
        path = [*path[: depth - 1], name.rstrip("/")]
        if name.endswith("/"):
            leaves.append("/".join(path))
    assert sorted(leaves) == sorted(FOLDERS)
    (tmp_path / "val" / "long_mr_1m").mkdir(parents=True)
    (tmp_path / "val" / "long_mr_1m" / "a.jsonl").touch()
    (tmp_path / "annotation" / "long_mr_32k").mkdir(parents=True)
    states = {folder.folder: folder.state for folder in look_for_folders(tmp_path)}
    assert states.pop("val/long_mr_1m") == "there" and states.pop("annotation/long_mr_32k") == "empty"
    assert set(states.values()) == {"missing"} and len(states) == len(FOLDERS) - 2


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("dataset/annotation/long_mr_32k", "dataset/annotation/long_mr_32k"),
        ("/x/image/long_vqa/paste/gqa/val/0/1", "/x/image/long_vqa/paste/gqa/val"),
        ("image/milebench/nh/train", "image/milebench/nh/train"),
        ("dataset/image/own", None),
        ("", None),
    ],
)
def test_published_folders_of_paths(path, folder):
    assert published_folder(path) == folder


def test_real_annotations(monkeypatch):
    monkeypatch.chdir(shared_path("real"))
    checks = check_data_list("train/annotation_train_real_small.json", full=True)
    assert [check.lines for check in checks] == [66, 60, 20, 5, 14] and all(check.complete for check in checks)


def test_the_tool(case, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_data

    def check(*arguments):
        status = check_data.main(["--workers", "0", *arguments])
        return status, *capsys.readouterr()

    status, output, _ = check(str(case.meta), "--full")
    assert status == 0 and f"{case.meta}: nothing is missing" in output
    (case.meta.parent / "image" / "3.png").unlink()
    root = case.meta.parent
    status, output, _ = check("--json", "--recipe", "debug", f"data.meta_path={case.meta}", "--dataset-root", str(root))
    content = json.loads(output)
    assert status == 1 and not content["complete"] and content["list"] == str(case.meta)
    assert [entry["num_missing"] for entry in content["datasets"]] == [1, 1]
    assert content["folders"][0] == {"folder": FOLDERS[0], "state": "missing"}
    status, output, _ = check("--dataset-root", str(root))
    assert status == 1 and f"missing {root}/val/long_mr_1m/" in output and "nothing is missing" not in output
    status, _, errors = check("--recipe", "debug", "--meta_path", "nowhere.json")
    assert status == 2 and errors.startswith("error: nowhere.json: cannot be read: No such file or directory")
    assert check()[0] == 2 and check("--show", "-1", str(case.meta))[0] == 2


def test_an_indexed_set_byte_by_byte(case, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_data

    folder = case.build(tmp_path / "set", images="embed").folder
    assert check_data.main(["--indexed", str(folder)]) == 0
    assert "nothing is damaged" in capsys.readouterr().out
    for name in ("images.bin", "report.json", "media.bin", "tokens.idx"):
        content = (folder / name).read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 16
        (folder / name).write_bytes(changed)
        assert check_data.main(["--indexed", str(folder), "--json"]) == 1
        problem = json.loads(capsys.readouterr().out)["problem"]
        assert str(folder / name) in problem and "copy or build it again" in problem
        (folder / name).write_bytes(content)
    assert check_data.main(["--indexed", str(folder), str(case.meta)]) == 2
    assert check_data.main(["--indexed", str(tmp_path / "gone")]) == 1


def test_names_that_steer_a_terminal(tmp_path):
    (check,) = check_data_list(write(tmp_path / "data", {"image": "\x1b[31m\u202e.png"}))
    shown = as_text("list", [check])
    assert "\\x1b[31m\\u202e.png: no such file" in shown and "\x1b" not in shown and "\u202e" not in shown


def test_pipes(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    entry = {"annotation": str(tmp_path / "a.jsonl"), "data_augment": False, "repeat_time": 1}
    (tmp_path / "list.json").write_text(json.dumps({"own": entry}))
    (check,) = check_data_list(tmp_path / "list.json")
    os.mkfifo(tmp_path / "b.png")
    (other,) = check_data_list(write(tmp_path / "data", {"image": str(tmp_path / "b.png")}))
    assert [(fault.path, fault.reason) for fault in other.missing] == [(f"{tmp_path}/b.png", "not a regular file")]
    assert check.problem and "a.jsonl: a pipe, expected a regular file" in check.problem and not check.complete
