"""Make the quickstart's data set: real photographs and scans, with questions, in the V2PE-Data layout.

    python examples/quickstart/make_data.py OUT

OUT/image/{photos,scans}/...     pictures that scikit-image and scikit-learn ship inside their wheels (no download)
OUT/annotation/*.jsonl           single-image, multi-image, multi-turn and text-only conversations
OUT/meta.json                    the data list that training reads; its paths start with OUT as given

The same question is asked of many pictures, and multi-image questions are asked in both orders of the pictures, so
that text alone answers none of them. The same files come out of every run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from megatron_v2pe.base.command import run_tool

LONGEST_SIDE = 320
"""Pictures are stored with sides of at most this many pixels."""
DIGIT_SIDE = 64
"""Side of a stored digit; scikit-learn's are scans reduced to 8 x 8 pixels."""

WHAT = "What is in the picture?"
COLOUR = "Is the picture in colour or in grey?"
DIGIT = "Which digit is written here?"

PHOTOS: dict[str, tuple[str, str]] = {
    # name -> (what is in it, how it is printed); name as in skimage.data
    "astronaut": ("An astronaut.", "In colour."),
    "coffee": ("A cup of coffee.", "In colour."),
    "chelsea": ("A cat.", "In colour."),
    "rocket": ("A rocket.", "In colour."),
    "motorcycle": ("A red motorcycle.", "In colour."),
    "china": ("A pagoda.", "In colour."),
    "flower": ("An orange flower.", "In colour."),
    "retina": ("The inside of an eye.", "In colour."),
    "hubble_deep_field": ("Distant galaxies.", "In colour."),
    "immunohistochemistry": ("Stained tissue.", "In colour."),
    "camera": ("A man with a camera.", "In grey."),
    "coins": ("Old coins.", "In grey."),
    "brick": ("Bricks.", "In grey."),
    "grass": ("Dry grass.", "In grey."),
    "gravel": ("Gravel.", "In grey."),
    "moon": ("The surface of the moon.", "In grey."),
}
SCANS: dict[str, tuple[str, str]] = {
    "page": ("A printed page.", "In grey."),
    "text": ("Handwritten formulas.", "In grey."),
}
PICTURES = {**PHOTOS, **SCANS}

PAIRS = (("chelsea", "rocket"), ("coffee", "coins"), ("astronaut", "moon"), ("flower", "page"))
DIGIT_ROWS = ((3, 7), (1, 8), (4, 0, 9), (2, 6, 5))
TURNS = ("astronaut", "chelsea", "coins", "page", "flower", "moon", "china", "gravel")
TEXT = (
    ("How many days are in a week?", "Seven."),
    ("How many months are in a year?", "Twelve."),
    ("What colour is the clear sky?", "Blue."),
    ("What do bees make?", "Honey."),
    ("What is frozen water called?", "Ice."),
    ("Which animal barks?", "A dog."),
)


def path_of(name: str) -> str:
    """Return where a picture lies under OUT/image."""
    return f"scans/{name}.png" if name in SCANS or name.startswith("digit") else f"photos/{name}.jpg"


def read_picture(name: str) -> Image.Image:
    """Return a picture out of the installed wheels, at most `LONGEST_SIDE` pixels long."""
    if name == "motorcycle":
        pixels = skimage.data.stereo_motorcycle()[0]
    elif name in ("china", "flower"):
        pixels = load_sample_image(f"{name}.jpg")
    else:
        pixels = getattr(skimage.data, name)()
    picture = Image.fromarray(np.asarray(pixels, dtype=np.uint8)).convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return picture


def read_digits() -> dict[str, Image.Image]:
    """Return one scan of each digit, black on white: `digit_0` to `digit_9`."""
    shades, digits = load_digits(return_X_y=True)
    found: dict[str, Image.Image] = {}
    for pixels, digit in zip(shades, digits, strict=True):
        name = f"digit_{digit}"
        if name not in found:
            ink = np.round(255 - pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8)  # 16 shades, 0 the paper
            found[name] = Image.fromarray(ink).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC)
    return dict(sorted(found.items()))


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """Return a conversation from (question, answer) pairs."""
    return [
        {"from": role, "value": text}
        for question, answer in turns
        for role, text in (("human", question), ("gpt", answer))
    ]


def single_image() -> list[dict[str, Any]]:
    """One picture, one question: what is in it, or which digit it shows."""
    pictures = [(name, WHAT, what) for name, (what, _) in PICTURES.items()]
    digits = [(f"digit_{n}", DIGIT, f"{n}.") for n in range(10)]
    return [
        {"image": path_of(name), "conversations": talk((f"<image>\n{question}", answer))}
        for name, question, answer in pictures + digits
    ]


def multi_image() -> list[dict[str, Any]]:
    """Several pictures, and a question whose answer depends on their order: every row both ways round."""
    samples = []
    for first, second in [order for pair in PAIRS for order in (pair, pair[::-1])]:
        what = f"{PICTURES[first][0][:-1]}, then {_in_a_sentence(PICTURES[second][0])}"
        samples.append(_several((first, second), "What do the pictures show, in order?", what))
    for row in [order for digits in DIGIT_ROWS for order in (digits, digits[::-1])]:
        names = tuple(f"digit_{n}" for n in row)
        samples.append(_several(names, "Read the digits in order.", ", ".join(str(n) for n in row) + "."))
    return samples


def multi_turn() -> list[dict[str, Any]]:
    """One picture, two questions after one another."""
    return [
        {
            "image": path_of(name),
            "conversations": talk((f"<image>\n{WHAT}", PICTURES[name][0]), (COLOUR, PICTURES[name][1])),
        }
        for name in TURNS
    ]


def text_only() -> list[dict[str, Any]]:
    """No picture at all."""
    return [{"conversations": talk(turn)} for turn in TEXT]


def make(out: Path) -> dict[str, int]:
    """Write the whole data set.

    Returns:
        Samples of each annotation file.
    """
    out = out.absolute()  # the list is then right from any folder
    for name in PICTURES:
        _save(read_picture(name), out / "image" / path_of(name))
    for name, scan in read_digits().items():
        _save(scan, out / "image" / path_of(name))
    sets = {"single": single_image(), "multi": multi_image(), "turns": multi_turn(), "text": text_only()}
    meta: dict[str, dict[str, Any]] = {}
    for name, samples in sets.items():
        annotation = out / "annotation" / f"{name}.jsonl"
        _write_lines(annotation, (json.dumps(sample) for sample in samples))
        entry: dict[str, Any] = {
            "root": f"{out / 'image'}/",
            "annotation": str(annotation),
            "data_augment": True,
            "repeat_time": 1,
            "length": len(samples),
        }
        if name == "multi":
            entry["max_dynamic_patch"] = 1
        meta[f"quickstart_{name}"] = entry
    _write_lines(out / "meta.json", [json.dumps(meta, indent=2)])
    return {name: len(samples) for name, samples in sets.items()}


def _several(names: tuple[str, ...], question: str, answer: str) -> dict[str, Any]:
    lines = [f"Image-{number}: <image>\n" for number in range(1, len(names) + 1)]
    return {
        "image": [path_of(name) for name in names],
        "conversations": talk(("".join(lines) + question, answer)),
    }


def _in_a_sentence(answer: str) -> str:
    return answer[0].lower() + answer[1:]


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        picture.save(path, quality=92)
    else:
        picture.save(path)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write through a temporary name, so that the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def main(argv: list[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make the quickstart's data set in the V2PE-Data layout.")
    parser.add_argument("out", type=Path, help="folder to write to; must not hold files yet")
    args = parser.parse_args(argv)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        print(f"error: {args.out} is in use; name a new or empty folder", file=sys.stderr)
        return 1
    counts = make(args.out)
    pictures = len(PICTURES) + 10
    print(f"{args.out}: {sum(counts.values())} samples of {pictures} pictures: {counts}")
    return 0


if __name__ == "__main__":
    run_tool(main)
