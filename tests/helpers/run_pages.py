"""A made-up run on disk, as its files are: metrics, record, packs, evaluation."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from megatron_v2pe.train.page.bins import LENGTH_BINS, TILE_BINS

HOSTILE = "a<b> & </script><script>alert(1)</script>"
"""Name of a data set that a page must not take for markup."""


def row(step: int, **values: Any) -> dict[str, Any]:
    """Return a row of metrics whose loss falls."""
    return {
        "iteration": step,
        "loss": 4.0 / step,
        "lr": 1e-3 / step,
        "grad_norm": 2.0 / step,
        "tokens": 1000,
        "tiles": 20,
        "packs": 1,
        "seconds": 0.5,
        "tokens_per_second": 2000.0,
        "tiles_per_second": 40.0,
        "memory_gib": 0.5,
        "tflop": 1.0,
        "tflops_per_device": 1.0,
        "mfu": None,
        "warm_up": step == 1,
        "loss/photos": 4.0 / step,
        f"loss/{HOSTILE}": 5.0 / step,
        **values,
    }


def write_run(folder: Path, rows: list[dict[str, Any]] | None = None, **record: Any) -> Path:
    """Write a run of 60 steps that went on after step 30, and return its folder."""
    logs = folder / "logs"
    (logs / "packs").mkdir(parents=True)
    if rows is None:
        rows = [row(step) for step in range(1, 61)]
        rows[30]["resumed_from"] = 30
        for step in (20, 40, 60):
            rows[step - 1] |= {"validation/loss": 3.0 / step, "evaluation/pictures": 1.5 * step}
    (logs / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    picture = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(picture, "JPEG")
    (logs / "packs" / "step_00000001_1.jpg").write_bytes(picture.getvalue())
    lengths, tiles = [0] * LENGTH_BINS, [0] * TILE_BINS
    lengths[8], lengths[12], tiles[0], tiles[3] = 10, 30, 10, 30
    counts = {"weight": 1.0, "samples": 30, "tokens": 3000, "tiles": 90, "supervised": 300}
    document = {
        "dataset": HOSTILE,
        "line": 3,
        "tokens": 12,
        "tiles": 2,
        "learned": 2,
        "picture": "step_00000001_1.jpg",
        "parts": [{"text": "What is it? ", "learned": False}, {"text": "A boat.", "learned": True}],
    }
    content = {
        "form": 1,
        "steps": 60,
        "train_steps": 60,
        "model": "a small model",
        "settings": {"optimizer": {"clip_grad": 1.0, "lr": 0.5}, "train": {"precision": "fp32"}},
        "asked": {"photos": 50, HOSTILE: 50},
        "drawn": {"sets": {"photos": counts, HOSTILE: {**counts, "samples": 10}}, "lengths": lengths, "tiles": tiles},
        "skipped": {"cannot read FILE": 2},
        "examples": [{"sample": "photos.jsonl:7 (photos)", "error": "cannot read boat.jpg"}],
        "packs": [{"step": 1, "documents": [document], "all_documents": 1, "tokens": 12, "tiles": 2}],
        "sessions": [
            {
                "from": 0,
                "to": 30,
                "time": 1.0,
                "ended": 2.0,
                "host": "one",
                "where": "cpu",
                "versions": {"torch": "2.12"},
            },
            {
                "from": 30,
                "to": 60,
                "time": 3.0,
                "ended": 4.0,
                "host": "two",
                "where": "cpu",
                "versions": {"torch": "2.13"},
            },
        ],
        **record,
    }
    (logs / "run_record.json").write_text(json.dumps(content))
    asked = folder / "evaluation" / "iter_0000060" / "pictures"
    asked.mkdir(parents=True)
    answer = {"id": "1", "prompt": "human: <image of 5 tiles>\nWhat is in the picture?", "answer": "A boat."}
    (asked / "answers-00000.jsonl").write_text(json.dumps(answer) + "\n")
    (asked / "results.json").write_text(json.dumps({"benchmark": "pictures", "score": 90.0, "questions": 1}))
    return folder
