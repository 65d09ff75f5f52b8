"""What a checker passes a run does not refuse: `check_data --full`, a full build and training agree on every line."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.data_cases import turns
from megatron_v2pe.data.batch import PackReader
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.indexed.build import BuildOptions, build
from megatron_v2pe.data.indexed.plan import IndexedPack, IndexedReader
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.errors import DataError
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.checking.check import check_data_list
from megatron_v2pe.workshop.checking.samples import SampleChecker
from megatron_v2pe.workshop.synthetic.small_data import FACTS, config_for

WEB = "https://example.org/a picture"
FRAMES = 12
EPOCHS = 6
"""Passes in which training meets every frame of a video of `FRAMES` with near certainty."""


@dataclass(frozen=True)
class Line:
    """A line of an annotation, and whether it can be used."""

    row: dict | str
    good: bool | None
    """None: either, as long as all say the same."""
    dataset: str = "own"


def good(dataset="own", *texts, **fields):
    return Line({"conversations": turns(*texts or ("what",)), **fields}, True, dataset)


def bad(dataset="own", *texts, **fields):
    return Line({"conversations": turns(*texts or ("what",)), **fields}, False, dataset)


TWO = "one <image> two <image>"
LINES = {
    # Every kind of sample.
    "text only": good(),
    "several turns": good("own", "what", "this", "and", "that"),
    "one image": good(image="a.png"),
    "one image, its place named": good("own", "<image>\nwhat", image="a.png"),
    "several images": good("own", TWO, image=["a.png", "b.jpg"]),
    "a list of one": good("own", "<image> what", image=["a.png"]),
    "an image of the web": good(image=WEB),
    "images below root2": good("own", TWO, image=["a.png", "b.jpg"]),
    "s3": good("s3", image="s3://bucket/c.png"),
    "an animated image shows its first frame": good(image="clip.gif"),
    "sixteen bits": good(image="deep.png"),
    "a turned picture": good("turned", image="turned.jpg"),
    "transparent, on white": good("turned", image="clear.png"),
    "a GIF": good(video="clip.gif"),
    "part of a GIF": good(video="clip.gif", clip=[0.2, 0.8]),
    "a folder of frames": good(video="frames/"),
    "a folder named without its slash": good(video="frames"),
    "frames with other files beside them": good(video="untidy/"),
    "a video file": good(video="clip.mp4"),
    "part of a video file": good(video="clip.mp4", clip=[0.2, 0.8]),
    "a leading answer is dropped": Line({"conversations": [*turns("what")[1:], *turns("what")]}, True),
    # Every refusal.
    "no JSON": Line("{", False),
    "no object": Line("[1]", False),
    "no conversation": Line({"image": "a.png"}, False),
    "an empty answer": bad("own", "what", " "),
    "a missing file": bad(image="gone.png"),
    "one of two missing": bad("own", TWO, image=["a.png", "gone.png"]),
    "a folder for an image": bad(image="frames"),
    "a folder with a slash for an image": bad(image="frames/"),
    "a pipe": bad(image="pipe.png"),
    "no image": bad(image="text.png"),
    "empty": bad(image="empty.png"),
    "damaged behind the header": bad(image="torn.png"),
    "half a JPEG": bad(image="torn.jpg"),
    "whole numbers of 32 bits": bad(image="whole.tif"),
    "floats beyond 0 to 1": bad(image="float.tif"),
    "more pixels than memory": bad(image="huge.png"),
    "a video for an image": bad(image="clip.mp4"),
    "a missing video": bad(video="gone.mp4"),
    "a missing folder of frames": bad(video="gone/"),
    "an empty folder of frames": bad(video="none/"),
    "nothing but other files": bad(video="others/"),
    "a damaged frame": bad(video="torn/"),
    "a link that leads nowhere": bad(video="linked/"),
    "no video": bad(video="text.mp4"),
    "a damaged GIF": bad(video="torn.gif"),
    "a clip outside": bad(video="clip.gif", clip=[50, 60]),
    "a clip that ends first": bad(video="clip.mp4", clip=[0.8, 0.2]),
    "a clip of one number": bad(video="clip.gif", clip=[1]),
    "an address without http_root": bad("s3", image=WEB),
    "two images, one place": bad("own", "<image> what", image=["a.png", "b.jpg"]),
    "two images, no place": bad(image=["a.png", "b.jpg"]),
    "two images, three places": bad("own", f"{TWO} <image>", image=["a.png", "b.jpg"]),
    "a place without an image": bad("own", "<image> what"),
    "marks of an image in the text": bad("own", "what is <IMG_CONTEXT>", image="a.png"),
    "too many turns in a row": Line({"conversations": [*turns("what"), *turns("what")[1:]]}, False),
    "ends with a question": Line({"conversations": [*turns("what"), *turns("and")[:1]]}, False),
    "an unknown speaker": Line({"conversations": [{"from": "nobody", "value": "what"}, *turns("what")[1:]]}, False),
    "longer than a sample may be": bad("own", "a red square " * 200),
    "more tiles than a pack holds": bad("own", "<image> " * 21, image=["a.png"] * 21),
    "as many tiles as a pack holds": good("own", "<image> " * 4, image=["a.png"] * 4),
    "a picture under another name": Line({"conversations": turns("what"), "picture": "a.png"}, None),
    "a picture under a usual name": Line({"conversations": turns("what"), "images": ["a.png"]}, None),
    "something else under a name of its own": good(license="free", boxes=[1, 2]),
    "no pixels": bad(image="nothing.tif"),
    "a place in a later question": good("own", "what", "this", "and <image>", "that", image="a.png"),
    "a place in an answer": Line({"conversations": turns("what", "see <image>"), "image": "a.png"}, None),
    "a system turn": Line({"conversations": [{"from": "system", "value": "be short"}, *turns("what")]}, None),
    "marks of a turn in the text": Line({"conversations": turns("what <|im_end|> what")}, None),
    "a video with two places": Line({"conversations": turns("<video> and <video>"), "video": "frames/"}, None),
    "an image and a video": Line({"conversations": turns("what"), "image": "a.png", "video": "frames/"}, None),
    "nothing but blanks asked": Line({"conversations": turns(" ")}, None),
    "half a surrogate pair": Line('{"conversations": [{"from": "human", "value": "\\ud83d"}]}', False),
    "an image inside the line": Line({"conversations": turns("what"), "image": "data:image/png;base64,AAAA"}, False),
}


def write_files(root: Path) -> None:
    generator = np.random.default_rng(0)

    def picture(width=56, height=28):
        return Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8))

    for folder in ("", "two", "web", "s3:/bucket", "frames", "untidy", "none", "others", "torn", "linked"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for folder in (root, root / "two"):
        picture().save(folder / "a.png")
        picture().save(folder / "b.jpg")
    picture().save(root / "web" / hashlib.sha256(WEB.encode()).hexdigest(), format="PNG")
    picture().save(root / "s3:/bucket/c.png")
    frames = [picture(40, 30) for _ in range(FRAMES)]
    frames[0].save(root / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    Image.fromarray(generator.integers(0, 65535, (28, 28), dtype=np.uint16)).save(root / "deep.png")
    exif = Image.Exif()
    exif[274] = 6
    picture().save(root / "turned.jpg", exif=exif)
    picture().convert("RGBA").save(root / "clear.png")
    for folder in ("frames", "untidy", "torn", "linked"):
        for number, frame in enumerate(frames, 1):
            frame.save(root / folder / f"f{number}.png")
    for name in (".DS_Store", "._f1.png", "Thumbs.db", "times.txt"):
        for folder in ("untidy", "others"):
            (root / folder / name).write_bytes(b"no picture")
    whole = (root / "a.png").read_bytes()
    (root / "torn" / "f7.png").write_bytes(whole[: len(whole) // 2])
    (root / "linked" / "f3.png").unlink()
    (root / "linked" / "f3.png").symlink_to(root / "nowhere.png")
    (root / "torn.png").write_bytes(whole[:100] + b"\0" * (len(whole) - 100))
    content = (root / "b.jpg").read_bytes()
    (root / "torn.jpg").write_bytes(content[: len(content) // 2])
    content = (root / "clip.gif").read_bytes()
    (root / "torn.gif").write_bytes(content[: len(content) // 2])
    for name in ("text.png", "text.mp4"):
        (root / name).write_text("hello")
    (root / "empty.png").touch()
    os.mkfifo(root / "pipe.png")
    Image.new("L", (1, 1)).save(root / "nothing.tif")
    content = bytearray((root / "nothing.tif").read_bytes())
    width = content.index(b"\x00\x01")  # the tag of the width, 256; its value of 1 follows type and count
    content[width + 8 : width + 10] = b"\0\0"
    (root / "nothing.tif").write_bytes(content)
    Image.fromarray(np.arange(784, dtype=np.int32).reshape(28, 28)).save(root / "whole.tif")
    Image.fromarray(np.arange(784, dtype=np.float32).reshape(28, 28)).save(root / "float.tif")
    (root / "huge.png").write_bytes(whole[:16] + b"\x7f\xff\xff\xff\x00\x7f\xff\xff" + whole[24:])
    av = pytest.importorskip("av", reason="PyAV is not installed (the `video` extra)")
    with av.open(str(root / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 40, 30
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer):
    """The data list of all lines, how it is encoded, and which line has which name."""
    folder = tmp_path_factory.mktemp("agree")
    root = folder / "files"
    write_files(root)
    entry = {"data_augment": False, "repeat_time": 1, "root": str(root)}
    lists = {
        "own": {**entry, "http_root": str(root / "web"), "root2": str(root / "two")},
        "s3": {**entry, "root": f"{root}/"},
        "turned": {**entry, "transparency": "white", "exif_rotation": True},
    }
    names = {}
    for dataset, content in lists.items():
        content["annotation"] = str(folder / f"{dataset}.jsonl")
        mine = {name: line.row for name, line in LINES.items() if line.dataset == dataset}
        names |= {(dataset, number): name for number, name in enumerate(mine, 1)}
        rows = [row if isinstance(row, str) else json.dumps(row) for row in mine.values()]
        Path(content["annotation"]).write_text("\n".join(rows) + "\n")
    (folder / "meta.json").write_text(json.dumps(lists))
    config = config_for(folder / "meta.json", min_num_frame=3, max_num_frame=5)
    return folder, DocumentEncoder(config, tokenizer, FACTS, StridePolicy("default"), seed=0), names


def refused_by_training(encoder, names):
    reader = PackReader(
        tile_size=FACTS.tile_size, mean=(0.5, 0.5, 0.5), reduction="token", denominator=encoder.denominator
    )
    refused = {}
    for dataset in read_data_list(encoder.config.meta_path):
        for index in range(len(dataset)):
            name = names[dataset.name, dataset.id_of(index).line]
            for epoch in range(EPOCHS):
                try:
                    lost = reader.read([encoder.document(dataset, index, epoch, 0)]).unreadable
                except DataError as error:
                    refused[name] = str(error)
                    break
                if lost:
                    refused[name] = lost[0][1]
                    break
    return refused


def refused_by_a_build(folder, encoder, names, **options):
    datasets = read_data_list(encoder.config.meta_path)
    build(datasets, encoder, BuildOptions(str(folder), image_check="full", **options), {})
    report = json.loads((folder / "report.json").read_text())
    return {
        names[entry["name"], line]: reason for entry in report["datasets"] for line, reason in entry["skipped_lines"]
    }


def refused_by_the_checker(encoder, names, **options):
    checks = check_data_list(encoder.config.meta_path, most_kept=1000, **options)
    return {
        names[check.name, fault.line]: fault.reason
        for check in checks
        for fault in (*check.bad_lines, *check.missing, *check.damaged)
    }


@pytest.fixture(scope="module")
def refused(world):
    """What each of the three refuses, by the name of the line: the reason."""
    folder, encoder, names = world
    whole = SampleChecker(encoder, lengths=True, reads_files=True)
    return {
        "training": refused_by_training(encoder, names),
        "preprocess --image-check full": refused_by_a_build(folder / "set", encoder, names),
        "check_data --full": refused_by_the_checker(encoder, names, full=True, checker=whole),
    }


@pytest.mark.parametrize("who", ["training", "preprocess --image-check full", "check_data --full"])
@pytest.mark.parametrize("name", LINES)
def test_every_line_is_judged_alike(refused, name, who):
    reasons = {key: found.get(name) for key, found in refused.items()}
    wanted = name not in refused["training"] if LINES[name].good is None else LINES[name].good
    assert (name not in refused[who]) == wanted, reasons


@pytest.mark.parametrize("images", ["reference", "embed"])
def test_a_set_that_was_built_with_a_full_check_is_read_to_the_end(world, refused, images):
    """Of what a build takes, training on the set refuses nothing in any epoch."""
    folder, encoder, names = world
    out = folder / images
    lost = refused_by_a_build(out, encoder, names, images=images)
    assert lost.keys() == refused["training"].keys()
    samples = IndexedSamples(out)
    reader = IndexedReader(samples, encoder, PackReader(FACTS.tile_size, (0.5, 0.5, 0.5), "token", encoder.denominator))
    assert len(samples) + len(lost) == len(names)
    for number in range(len(samples)):
        for epoch in range(EPOCHS):
            read = reader[IndexedPack(epoch, (number,), (number,))]
            assert not read.unreadable and len(read.sources) == 1


def test_what_looks_less_closely_refuses_no_more(world, refused):
    """Without a tokenizer, with headers alone or with names alone: never a line that training would take."""
    _, encoder, names = world
    whole, lengths = refused["check_data --full"], {"longer than a sample may be", "more tiles than a pack holds"}
    pixels = {"damaged behind the header", "half a JPEG", "floats beyond 0 to 1", "a damaged frame", "a damaged GIF"}
    plain = set(refused_by_the_checker(encoder, names, full=True))
    assert plain == whole.keys() - lengths
    headers = set(refused_by_the_checker(encoder, names, headers=True))
    assert plain - pixels <= headers <= plain
    quick = set(refused_by_the_checker(encoder, names))
    assert quick < headers and {"two images, one place", "a missing file", "nothing but other files"} <= quick
    with_tokens = SampleChecker(encoder, lengths=True, reads_files=False)
    assert set(refused_by_the_checker(encoder, names, checker=with_tokens)) - quick == {"longer than a sample may be"}
    assert set(refused_by_the_checker(encoder, names, workers=2, full=True)) == plain


def test_files_beside_frames_are_counted(world):
    _, encoder, _ = world
    for options in ({}, {"headers": True}, {"full": True}):
        own = check_data_list(encoder.config.meta_path, **options)[0]
        assert own.left_out == 8  # four beside frames, four alone
