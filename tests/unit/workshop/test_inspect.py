"""What inspection prints is read back and compared with the documents' tensors, what it draws with their tiles."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data_cases import POLICY, assert_same_ticks, every_kind
from helpers.shared import shared_path
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.image_operations import names_of
from megatron_v2pe.data.image_tiles import read_tiles
from megatron_v2pe.data.loader import build_loader
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import IGNORE_INDEX
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.parallel.zigzag import ZigzagLayout
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.inspection.contact_sheet import contact_sheet
from megatron_v2pe.workshop.inspection.find import find_pack, find_sample
from megatron_v2pe.workshop.inspection.listing import as_text
from megatron_v2pe.workshop.inspection.views import Viewer, as_position
from megatron_v2pe.workshop.synthetic.small_data import FACTS

TOOLS = Path(__file__).parents[3] / "tools"
MEAN = (0.485, 0.456, 0.406)


@pytest.fixture
def case(tmp_path, tokenizer):
    return every_kind(tmp_path / "data", tokenizer)


@pytest.fixture
def indexed(case, tmp_path):
    """The encoder of a run on the data list as an indexed set."""
    case.build(tmp_path / "set")
    config = replace(case.encoder.config, indexed_path=str(tmp_path / "set"), packing_window=17)
    return replace(case.encoder, config=config)


def viewer_of(encoder):
    template = get_template(encoder.config.template)
    return Viewer(encoder.config, encoder.tokenizer, template, encoder.facts.tokens_per_tile, encoder.denominator)


def view_of(encoder, found):
    lengths = [document.num_tokens for document in found.documents]
    return viewer_of(encoder).pack(found.title, found.documents, found.left_out, lengths)


def read_back(lines, tokens_per_tile):
    """Return positions, learned or not, and images of a document from the lines printed of it."""
    positions, learned, images = [], [], []
    for line in lines:
        run = re.match(r"(> |  )(\d+)(?: \.\. (\d+))? +([\d./ ]+?)(?: \.\. ([\d./ ]+?))? {2,}(.*)", line)
        if not run:
            continue  # another line of a run's text
        mark, start, end, first, last, text = run.groups()
        count = int(end or start) - int(start) + 1
        first, last = number(first), number(last or first)
        assert len(positions) == int(start), "every token once, in order"
        image = re.match(r"<img> (\S+), (\d+) tiles?, ([\d,]+) tokens?, stride (\S+), positions (.+?), file (.*)", text)
        if image:
            cut, tiles, tokens, stride, inner, file = image.groups()
            assert count == int(tokens.replace(",", "")) + 2 and count - 2 == int(tiles) * tokens_per_tile
            step = Fraction(stride) / tokens_per_tile
            within = [first + (1 + token) * step for token in range(count - 2)]
            assert [number(text) for text in inner.split(" .. ")] == [within[0], within[-1]]
            positions += [first, *within, last]
            images.append((int(start) + 1, int(tiles), cut, file))
        else:
            assert last - first == count - 1
            positions += [first + token for token in range(count)]
        learned += [mark == "> "] * count
    return positions, learned, images


def number(text):
    """Return what a printed position says: `17`, `17.25`, `17 255/256`."""
    return sum(Fraction(part) for part in text.split())


def assert_printed_as_it_is(encoder, found):
    parts = as_text(view_of(encoder, found)).split("\ndocument ")[1:]
    for part, document in zip(parts, found.documents, strict=True):
        header, counts, _, *lines = part.splitlines()
        positions, learned, images = read_back(lines, encoder.facts.tokens_per_tile)
        assert [position * encoder.denominator for position in positions] == document.position_ticks.values.tolist()
        assert learned == (document.labels != IGNORE_INDEX).tolist()
        assert [image[:2] for image in images] == list(document.images)
        for (_, tiles, cut, file), picture in zip(images, document.pictures, strict=True):
            grid = "whole" if picture.grid is None else "x".join(map(str, picture.grid))
            assert cut == grid + ("+thumb" if tiles > 1 else "") and file.startswith(picture.path)
        assert f"{document.source.file}:{document.source.line} ({document.source.dataset})" in header
        assert f"sample {document.key[2]} of epoch {document.key[1]}" in header
        assert counts.startswith(f"{document.num_tokens:,} token") and f" {document.num_tiles:,} tile" in counts
        assert counts.endswith(f"positions up to {as_position(document.position_ticks.last, encoder.denominator)}")


@pytest.mark.parametrize(
    ("ticks", "denominator", "text"),
    [
        (0, 1, "0"),
        (17, 1, "17"),
        (69, 4, "17.25"),
        (8, 16, "0.5"),
        (17 * 256 + 255, 256, "17 255/256"),
        (7, 3, "2 1/3"),
    ],
)
def test_positions_are_exact(ticks, denominator, text):
    assert as_position(ticks, denominator) == text and number(text) == Fraction(ticks, denominator)


@pytest.mark.parametrize("epoch", [0, 3])
def test_every_kind_of_sample_is_printed_as_it_is(indexed, epoch):
    for sample in range(34):
        assert_printed_as_it_is(indexed, find_sample(indexed, str(sample), epoch))


@pytest.mark.parametrize("policy", [StridePolicy("default"), StridePolicy("v2pe_fix", Fraction(1, 3))])
def test_other_positions(indexed, policy):
    assert_printed_as_it_is(replace(indexed, policy=policy), find_pack(replace(indexed, policy=policy), 1))


def test_text_and_questions_are_those_of_the_annotation(indexed, case):
    rows = [json.loads(line) for line in (case.meta.parent / "all.jsonl").read_text().splitlines()]
    template = get_template(indexed.config.template)
    for line, row in enumerate(rows, 1):
        turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
        if isinstance(row.get("image"), str):
            turns[0] = ("human", "<image>\n" + turns[0][1])
        (document,) = view_of(indexed, find_sample(indexed, f"all:{line}")).documents
        text = "".join("<image>" if run.image else run.text for run in document.runs)
        assert text == "<s>" + "".join(message.text for message in template.render(turns))
        stripped = [text.strip() for _, text in turns]
        assert list(document.exchanges) == list(zip(stripped[::2], stripped[1::2], strict=True))
        learned = "".join(run.text for run in document.runs if run.learned)
        assert learned == "".join(answer + template.end for answer in stripped[1::2])


def test_packs_of_a_set_are_those_of_training(indexed, tokenizer):
    loader = build_loader(indexed.config, tokenizer, FACTS, POLICY, seed=5, dp_rank=0, dp_size=1)
    epochs = [sum(1 for _ in _packs(indexed, epoch)) for epoch in range(2)]
    for place, batch in enumerate(islice(loader, sum(epochs))):
        epoch, pack = (0, place) if place < epochs[0] else (1, place - epochs[0])
        assert_same(indexed, find_pack(indexed, pack, epoch), batch)
    with pytest.raises(ConfigError, match=f"--pack 99: epoch 1 has packs 0 to {epochs[1] - 1}"):
        find_pack(indexed, 99, 1)


def test_packs_of_a_list_are_those_of_training(case, tokenizer):
    loader = build_loader(case.encoder.config, tokenizer, FACTS, POLICY, seed=5, dp_rank=0, dp_size=1)
    for pack, batch in enumerate(islice(loader, 9)):
        found = find_pack(case.encoder, pack)
        assert_same(case.encoder, found, batch)
        assert_printed_as_it_is(case.encoder, found)
    with pytest.raises(ConfigError, match="packs of a data list flow from one epoch into the next"):
        find_pack(case.encoder, 0, 1)
    with pytest.raises(ConfigError, match="expected 0 or more"):
        find_pack(case.encoder, -1)


def _packs(encoder, epoch):
    for pack in range(100):
        try:
            yield find_pack(encoder, pack, epoch)
        except ConfigError:
            return


def assert_same(encoder, found, batch):
    """Compare documents, their totals and their tiles with a micro-batch of training."""
    assert torch.equal(torch.cat([document.input_ids for document in found.documents]), batch.input_ids)
    ticks = Ticks.joined([document.position_ticks for document in found.documents], encoder.denominator)
    assert_same_ticks(ticks, batch.position_ticks)
    assert tuple(document.source for document in found.documents) == batch.sources
    tiles = [read_tiles(d.pictures, 28, MEAN, d.key, found.open_picture) for d in found.documents]
    assert torch.equal(torch.cat(tiles), batch.tiles)
    view = view_of(encoder, found)
    totals = view.totals
    assert (totals.tokens, totals.max_tokens, totals.max_tiles) == (sum(batch.seqlens), 700, 20)
    assert totals.tiles == sum(batch.num_tiles) and totals.attention_cost == sum(n**2 for n in batch.seqlens)
    assert totals.learned == (batch.labels != IGNORE_INDEX).sum()
    weights = [document.weight * document.learned for document in view.documents]
    assert sum(weights) == pytest.approx(batch.loss_weights.sum().item())


def test_a_sample_by_line_and_by_number(indexed, case):
    by_number, by_line = find_sample(indexed, "31"), find_sample(indexed, "more:3")
    online = find_sample(case.encoder, "more:3")
    for found in (by_line, online):
        (one,), (other,) = found.documents, by_number.documents
        assert one.source == other.source and one.key == other.key and one.source.line == 3
        assert torch.equal(one.position_ticks.values, other.position_ticks.values) and torch.equal(
            one.input_ids, other.input_ids
        )
    numbers = [
        d.key[2] for pack in _packs(indexed, 0) for d in pack.documents if d.source == by_line.documents[0].source
    ]
    assert by_line.documents[0].key[2] == min(numbers) and f"seen {len(numbers)} times in epoch 0" in by_line.title


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("34", "has samples 0 to 33"),
        ("nothing:1", "no data set 'nothing'; there are all, more"),
        ("more:2", "no sample of this line"),
        ("more", "expected DATASET:LINE"),
        ("more:x", "expected DATASET:LINE"),
    ],
)
def test_samples_that_are_not_there(indexed, case, name, message):
    with pytest.raises(ConfigError, match=message):
        find_sample(indexed, name)
    if not name.isdecimal():
        with pytest.raises(ConfigError, match=message.replace("no sample of this line", "no sample in line 2")):
            find_sample(case.encoder, name)


def test_samples_left_out_are_told(indexed, case):
    root = case.meta.parent / "image"
    (root / "frames" / "000.png").unlink()
    told = [text for pack in _packs(indexed, 0) for text in pack.left_out]
    assert len(told) in (2, 3) and all(
        "more.jsonl:1 (more): " in text and "other frames than when the data set was built" in text for text in told
    )
    (root / "3.png").unlink()
    with pytest.raises(DataError, match=r"more.jsonl:7 \(more\): .*3.png: no such image"):
        find_sample(case.encoder, "more:7")
    found = find_pack(case.encoder, 4)
    assert re.fullmatch(r"\d+ x FILE: no such image", found.left_out[0]) and "allows 0" in found.left_out[-1]
    assert f"left out: {found.left_out[0]}\n" in as_text(view_of(case.encoder, found))


def test_padding_is_that_of_the_layout(indexed):
    found = find_pack(indexed, 0)
    lengths = tuple(document.num_tokens for document in found.documents)
    layout = ZigzagLayout(lengths, 4)
    totals = viewer_of(indexed).pack(found.title, found.documents, (), layout.seqlens).totals
    expected = sum(-length % 8 for length in lengths)
    assert totals.padding == expected > 0 and totals.padded_lengths == layout.seqlens


def test_colour_escapes_and_shortening(indexed):
    found = find_sample(indexed, "2")
    view = view_of(indexed, found)
    assert "\033" not in as_text(view) and "\033[32m> " in as_text(view, colour=True)
    short = as_text(view, shorten=5)
    assert "<|im_... (" in short and " characters more)" in short
    (document,) = view.documents
    runs = (replace(document.runs[0], text="a\033[31mb\tc\nd"), *document.runs[1:])
    text = as_text(replace(view, documents=(replace(document, runs=runs),)))
    assert r"a\x1b[31mb\tc\n" in text and "\033" not in text


def test_the_sheet_shows_the_tiles(indexed):
    """Tiles of 28 pixels are drawn as they are: found pixel by pixel, in their grid, the thumbnail apart."""
    found = find_sample(indexed, "0")
    (document,) = found.documents
    (picture,) = document.pictures
    columns, rows = picture.grid
    assert picture.thumbnail and names_of(picture.operations) == ("jpeg",)
    view = view_of(indexed, found)
    sheet = np.asarray(contact_sheet(view, found.documents, 28, MEAN, found.open_picture))
    tiles = read_tiles(document.pictures, 28, MEAN, document.key, found.open_picture).numpy()
    places = [places_of(tile, sheet) for tile in tiles]
    assert [len(place) for place in places] == [1] * len(tiles)
    (left, top), *others, (thumb_left, thumb_top) = [place[0] for place in places]
    grid = [(left + 30 * column, top + 30 * row) for row in range(rows) for column in range(columns)]
    assert [(left, top), *others] == grid
    assert thumb_top == top and thumb_left > max(x for x, _ in grid) + 30
    limited = np.asarray(contact_sheet(view, found.documents, 28, MEAN, found.open_picture, max_tiles=len(tiles) - 1))
    assert not any(places_of(tile, limited) for tile in tiles) and limited.shape[0] < sheet.shape[0]


def places_of(tile, sheet):
    """Return left and top of every place where a tile stands in a sheet."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (1, 28, 3))[:, :, 0]
    rows, columns = np.nonzero((windows == tile[:1]).all(axis=(-1, -2, -3)))
    places = zip(columns.tolist(), rows.tolist(), strict=True)
    return [(x, y) for x, y in places if np.array_equal(sheet[y : y + 28, x : x + 28], tile)]


def test_the_sheet_of_every_pack(indexed, case):
    for found in _packs(indexed, 0):
        sheet = contact_sheet(view_of(indexed, found), found.documents, 28, MEAN, found.open_picture)
        assert sheet.width == 1600 and 100 < sheet.height < 3000
    (case.meta.parent / "image" / "1.png").write_bytes(b"no image")
    found = find_sample(indexed, "all:1")
    intact = contact_sheet(view_of(indexed, found), found.documents, 28, MEAN, found.open_picture)
    found = find_sample(indexed, "all:2")
    damaged = contact_sheet(view_of(indexed, found), found.documents, 28, MEAN, found.open_picture)
    red = np.asarray(damaged) == (0xB0, 0x00, 0x20)
    assert red.all(axis=-1).any() and not (np.asarray(intact) == (0xB0, 0x00, 0x20)).all(axis=-1).any()


def test_json_is_the_view(indexed):
    view = view_of(indexed, find_pack(indexed, 2))
    content = json.loads(json.dumps(asdict(view)))
    assert [entry["tokens"] for entry in content["documents"]] == [document.tokens for document in view.documents]
    (run, *_) = content["documents"][0]["runs"]
    assert (run["start"], run["end"], run["text"], run["learned"]) == (0, 1, "<s>", False)


def test_the_tool(case, tmp_path, monkeypatch, capsys, tokenizer):
    monkeypatch.syspath_prepend(str(TOOLS))
    import inspect_data

    settings = ["--tokenizer", str(Path(tokenizer.model_file).parent), "--tile-size", "28", "--tokens-per-tile", "4"]
    settings += ["--recipe", "debug", f"data.meta_path={case.meta}", "train.seed=5", "data.max_seq_length=400"]
    settings += ["--max_packed_tokens", "700", "--data.num-images-expected", "20", "data.max_dynamic_patch=6"]
    settings += ["v2pe.rope_pos_id_version=v2pe_rnd", "v2pe.strides=1,2,4", "data.max_buffer_size=4"]
    settings += ["data.min_num_frame=2", "data.max_num_frame=4"]

    def inspect(*arguments):
        status = inspect_data.main([*arguments, *settings])
        return status, *capsys.readouterr()

    found = find_pack(case.encoder, 3)
    lengths = tuple(document.num_tokens for document in found.documents)
    viewer = viewer_of(case.encoder)
    status, output, errors = inspect("--pack", "3", "--sheet", str(tmp_path / "s.png"), "--context-parallel-size", "2")
    assert status == 0 and output == as_text(
        viewer.pack(found.title, found.documents, (), ZigzagLayout(lengths, 2).seqlens)
    )
    assert Image.open(tmp_path / "s.png").width == 1600 and f"{tmp_path}/s.png: 1600 x" in errors
    status, output, _ = inspect("--sample", "more:5", "--epoch", "1", "--json")
    assert status == 0 and json.loads(output)["documents"][0]["line"] == 5
    for wrong in (["--sample", "none:1"], ["--epoch", "1"], ["--pack", "-1"], ["--context-parallel-size", "-2"]):
        status, output, errors = inspect(*wrong)
        assert status == 2 and errors.splitlines()[-1].startswith("error: ") and not output
    status, _, errors = inspect("--sheet", str(tmp_path / "nowhere" / "s.png"))
    assert status == 2 and "nowhere" in errors


def test_real_data(monkeypatch):
    """Real charts and questions, in two languages, with InternVL2's tokenizer and the published settings."""
    tokenizer = Tokenizer.from_folder(shared_path("golden/tokenizer"))
    monkeypatch.chdir(shared_path("real"))
    config = DataConfig(
        meta_path="train/annotation_train_real_small.json",
        max_seq_length=34000,
        max_packed_tokens=34000,
        num_images_expected=135,
        loss_reduction="square",
    )
    encoder = DocumentEncoder(config, tokenizer, ModelFacts(448, 256), StridePolicy("v2pe_rnd", seed=42), 42)
    found = find_pack(encoder, 0)
    assert_printed_as_it_is(encoder, found)
    found = find_sample(encoder, "multi_image:6")
    (document,) = view_of(encoder, found).documents
    row = json.loads(Path("train/annotation/multi_image.jsonl").read_text().splitlines()[5])
    assert document.exchanges[0] == tuple(turn["value"].strip() for turn in row["conversations"][:2])
    sheet = contact_sheet(view_of(encoder, found), found.documents, 448, MEAN)
    assert sheet.width == 1600 and np.asarray(sheet).std() > 20
