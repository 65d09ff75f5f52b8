"""Draw the loss of a run, from its `metrics.jsonl`, as a PNG.

    python examples/quickstart/plot_loss.py RUN/logs/metrics.jsonl loss.png --stopped-at 150

Steps at which the run was stopped and resumed are marked by a line.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (the backend comes first)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_v2pe.base.command import run_tool  # noqa: E402
from megatron_v2pe.train.metrics_file import read_metrics  # noqa: E402

SMOOTHING = 10
"""Steps of the running mean drawn over the single steps."""


def read_losses(path: Path) -> tuple[list[int], list[float]]:
    """Return steps and losses.

    Raises:
        ValueError: the file holds no step, or a line that is no row of metrics.
    """
    rows = read_metrics(path, numbers=("loss",))
    if not rows:
        raise ValueError(f"{path}: holds no step")
    return [row["iteration"] for row in rows], [row["loss"] for row in rows]


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of each value and up to `width - 1` before it."""
    return [sum(values[max(0, end - width) : end]) / min(width, end) for end in range(1, len(values) + 1)]


def draw(steps: Sequence[int], losses: Sequence[float], stopped_at: Sequence[int], out: Path) -> None:
    """Write the curve; the file is whole or not there."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="each step")
    axes.plot(steps, running_mean(losses, SMOOTHING), color="tab:blue", label=f"mean of {SMOOTHING} steps")
    for step in stopped_at:
        axes.axvline(step, color="tab:red", linestyle="--", linewidth=1, label=f"stopped and resumed at step {step}")
    axes.set(yscale="log", xlabel="step", ylabel="loss", title="Quickstart: loss on the training data")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend()
    temporary = out.with_name(f".{out.name}.writing")
    figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    os.replace(temporary, out)


def main(argv: list[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Draw the loss of a training run as a PNG.")
    parser.add_argument("metrics", type=Path, help="metrics.jsonl of the run")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--stopped-at", type=int, action="append", default=[], help="step to mark; may be repeated")
    args = parser.parse_args(argv)
    try:
        steps, losses = read_losses(args.metrics)
        draw(steps, losses, args.stopped_at, args.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: loss {losses[0]:.3f} at step {steps[0]}, {losses[-1]:.4f} at step {steps[-1]}")
    return 0


if __name__ == "__main__":
    run_tool(main)
