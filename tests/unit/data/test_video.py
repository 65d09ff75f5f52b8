"""Frames of videos: drawn in order from folders, animations and video files."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.shared import shared_path
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.image_files import image_size
from megatron_v2pe.data.image_tiles import read_tiles
from megatron_v2pe.data.indexed.files import measure_image, measure_video
from megatron_v2pe.data.video import draw_frames, frame_range, list_frames, read_frames
from megatron_v2pe.errors import DataError
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.small_data import FACTS, config_for


def grey(value):
    return Image.new("RGB", (28, 28), (value, value, value))


@pytest.fixture
def clips(tmp_path):
    """The same 40 frames, brighter and brighter, as a folder, a GIF and a video file."""
    frames = [grey(6 * i) for i in range(40)]
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "frames" / f"{number:05d}.png")
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    av = pytest.importorskip("av", reason="PyAV is not installed (the `video` extra)")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 28
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return tmp_path


def test_one_frame_per_interval():
    for seed in range(20):
        chosen = draw_frames(100, 10, seed)
        assert all(10 * i <= frame <= 10 * i + 8 for i, frame in enumerate(chosen))
    assert draw_frames(100, 10, 0) != draw_frames(100, 10, 1)


def test_short_videos():
    assert draw_frames(3, 5, 0) == [0, 1, 2, 2, 2]
    chosen = draw_frames(12, 8, 0)  # intervals of one frame are empty: a sorted subset instead
    assert chosen == sorted(set(chosen)) and len(chosen) == 8


@pytest.mark.parametrize("name", ["frames/", "clip.gif", "clip.mp4"])
def test_video_samples(clips, tokenizer, name):
    row = {"video": name, "conversations": [{"from": "human", "value": "what"}, {"from": "gpt", "value": "yes"}]}
    (clips / "a.jsonl").write_text(json.dumps(row) + "\n")
    config = config_for(clips / "meta.json", min_num_frame=4, max_num_frame=6)
    encoder = DocumentEncoder(config, tokenizer, FACTS, StridePolicy("v2pe_fix", 2), seed=3)
    dataset = Dataset("d", str(clips / "a.jsonl"), root=f"{clips}/")
    document = encoder.document(dataset, 0, 0, 0)
    assert 4 <= len(document.pictures) <= 6 and document.num_tiles == len(document.pictures)
    text = tokenizer.decode(document.input_ids.tolist())
    assert "Frame1:" in text and f"\nFrame{len(document.pictures)}:what" in text
    brightness = read_tiles(document.pictures, 28, (0, 0, 0)).float().mean((1, 2, 3))
    assert (brightness.diff() > 3).all(), "in order"
    later = [encoder.document(dataset, 0, epoch, 0) for epoch in range(12)]
    assert {len(document.pictures) for document in later} == {len(document.pictures)}, "the number stays"
    assert len({document.pictures for document in later}) > 3, "which frames changes"
    counts = {replace(encoder, seed=seed).encode(dataset, 0).num_tiles for seed in range(12)}
    assert counts == {4, 5, 6}


def test_clips(clips):
    path = str(clips / "clip.mp4")
    assert frame_range(path, None) == (0, 40)
    assert frame_range(path, (1.0, 2.5)) == (10, 25)
    with pytest.raises(DataError, match=r"clip 5.0 to 6.0 s is outside of 4.00 s \(40 frames\)"):
        frame_range(path, (5.0, 6.0))
    assert frame_range(path, (-1e308, 1e308)) == (0, 40)
    values = [np.asarray(frame).mean() for frame in read_frames(path, [3, 3, 30])]
    assert values[0] == values[1] and abs(values[2] - values[0] - 162) < 12


def test_errors(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        list_frames(str(tmp_path / "gone/"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no frames"):
        list_frames(str(tmp_path / "empty/"))
    with pytest.raises(DataError, match="no such video"):
        frame_range(str(tmp_path / "gone.mp4"), None)
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(DataError, match="not a video"):
        frame_range(str(tmp_path / "text.mp4"), None)


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4"])
def test_damaged_videos(clips, monkeypatch, name):
    """Whatever the decoder makes of a file cut short or overwritten, nothing but DataError leaves."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # a damaged header may ask for all memory
    whole, generator, refused = (clips / name).read_bytes(), np.random.default_rng(0), 0
    path = clips / f"damaged_{name}"
    for trial in range(120):
        content = bytearray(whole[: generator.integers(1, len(whole))] if trial % 2 else whole)
        for place in generator.integers(0, len(content), 20):
            content[place] = generator.integers(256)
        path.write_bytes(content)
        try:
            first, last = frame_range(str(path), None)
            read_frames(str(path), draw_frames(last - first, 4, trial))
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 20


@pytest.mark.parametrize(
    ("error", "name"), [(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "clip.mp4"), (IndexError("i"), "clip.mp4")]
)
def test_decoder_errors_of_any_kind(clips, monkeypatch, error, name):
    import av

    def fails(path, **options):
        raise error

    monkeypatch.setattr(av, "open", fails)
    with pytest.raises(DataError, match=f"{name}: not a video: {type(error).__name__}"):
        frame_range(str(clips / name), None)


@pytest.mark.parametrize("path", ["a\0b.mp4", "a\0b.gif", "\ud83d.gif", "x" * 300 + ".mp4"])
def test_impossible_paths(path):
    pytest.importorskip("av", reason="PyAV is not installed (the `video` extra)")
    with pytest.raises(DataError):
        frame_range(path, None)


@pytest.mark.parametrize(("name", "frames"), [("flipping_a_pancake.mkv", 310), ("playing_guitar.mp4", 300)])
def test_real_videos(name, frames):
    path = str(shared_path(f"real/video/{name}"))
    assert frame_range(path, None) == (0, frames)
    first, last = read_frames(path, [0, frames - 1])
    assert np.abs(np.asarray(first, float) - np.asarray(last, float)).mean() > 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.m3u8", b"#EXTM3U\n#EXTINF:4,\nclip.mp4\n#EXT-X-ENDLIST\n"),
        ("list.mp4", b"ffconcat version 1.0\nfile clip.mp4\n"),
        ("web.mp4", b"ffconcat version 1.0\nfile http://127.0.0.1:9/clip.mp4\n"),
        ("session.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"),
    ],
)
def test_lists_of_other_files_are_no_videos(clips, name, content):
    assert frame_range(str(clips / "clip.mp4"), None) == (0, 40)
    (clips / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: not a video"):
        frame_range(str(clips / name), None)


def test_names_that_look_like_addresses(clips, monkeypatch):
    monkeypatch.chdir(clips)
    for name in ("concat:clip.mp4|clip.mp4", "http:clip.mp4", "file:x.mp4"):
        (clips / name).write_bytes((clips / "clip.mp4").read_bytes())
        assert frame_range(name, None) == (0, 40)
    with pytest.raises(DataError, match="no such video"):
        frame_range("http://127.0.0.1:9/clip.mp4", None)


@pytest.mark.parametrize("name", ["pipe.mp4", "pipe.gif", "pipe.png"])
def test_pipes_are_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    path = str(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: a pipe, expected a regular file"):
        image_size(path) if name.endswith("png") else frame_range(path, None)
    for measure in (lambda: measure_image(path, False), lambda: measure_video(path)):
        with pytest.raises(DataError, match=f"{name}: a pipe, expected a regular file"):
            measure()
