"""Settings of the evaluation while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from megatron_v2pe.base import config_tree
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range
from megatron_v2pe.v2pe.settings import Stride, parse_stride

_StrideText = Annotated[str, config_tree.NUMBER_OR_TEXT]


@dataclass(frozen=True)
class EvaluationConfig:
    """Benchmarks that are asked while the run trains, when, and how; unset settings are as in `tools/evaluate.py`."""

    benchmarks: tuple[str, ...] = ()
    """Benchmarks, groups of them, or files of one's own questions (`*.jsonl`), as `tools/evaluate.py` takes them;
    empty: nothing is asked."""
    interval: Annotated[int, Range(1, 10**9)] | None = None
    """Steps between two evaluations; unset: only at the end."""
    at_end: bool = True
    """Evaluate after the last step too."""
    samples: Annotated[int, Range(1, 10**9)] | None = None
    """Questions asked of each benchmark, drawn once by `seed`: the same every time and in every layout; unset: all."""
    seed: Annotated[int, Range(0, config_tree.LARGEST_INTEGER)] = 42
    """Seed of the draw of `samples`."""
    root: str = "."
    """Folder that the paths of the benchmarks' data are relative to."""
    mode: Literal["corrected", "reference"] = "corrected"
    """Mode of prompts and scores."""
    strides: tuple[_StrideText, ...] = ()
    """Strides to ask with, one after the other; empty: that of the run, or the usual one where it draws strides."""
    batch_size: Annotated[int, Range(1, 10**6)] = 1
    """Most questions answered together."""
    max_num: Annotated[int, Range(1, 1000)] | None = None
    """Most tiles of an image; unset: each benchmark's own, or the run's."""
    window: Annotated[int, Range(1, 10**12)] | None = None
    """Positions prompt and answer may reach; unset: any."""
    minutes: Annotated[float, Range(1e-4, 10**6)] | None = None
    """Once so much time is spent on an evaluation, no further questions are begun; a benchmark that is not complete has
    no score then. Unset: it takes what it takes."""
    image_workers: Annotated[int, Range(0, 1024)] | None = None
    """Threads that prepare the next questions; unset: up to 8 on CUDA, 0 on the CPU."""
    prefill_tokens: Annotated[int, Range(1, 1 << 30)] = 16384
    """Prompt tokens run at once."""
    vision_cache_mb: Annotated[int, Range(0, 1 << 20)] = 1024
    """Memory for image features kept from one question to the next, given back after each evaluation, in MiB."""

    def validate(self, version: str, save: str | None, spec: str) -> None:
        """Check the values; names of benchmarks and their data are looked at by `benchmarks.chosen`.

        Args:
            version: positions of the run, `v2pe.rope_pos_id_version`.
            save: folder of the run.
            spec: layers of the run, `model.spec`.

        Raises:
            ConfigError: names the setting.
        """
        config_tree.check_values(self, "evaluation")
        if not self.benchmarks:
            if self.interval is not None:
                raise ConfigError(
                    f"evaluation.interval is {self.interval}, but evaluation.benchmarks names none to ask: name some, "
                    "or leave the interval out"
                )
            return
        if self.interval is None and not self.at_end:
            raise ConfigError(
                "evaluation.benchmarks would never be asked: set evaluation.interval, or evaluation.at_end true"
            )
        if save is None:
            raise ConfigError("evaluation.benchmarks needs checkpoint.save: answers are kept there, in evaluation/")
        if spec == "te":
            raise ConfigError(
                "evaluation.benchmarks asks layers of model.spec local, which is te here: generation knows no others"
            )
        strides = self.parsed_strides()
        if strides and version == "default":
            raise ConfigError(
                f"evaluation.strides is {', '.join(self.strides)}, but v2pe.rope_pos_id_version is default, which has "
                "no strides; leave them out"
            )
        if len({*strides}) < len(strides):
            raise ConfigError(f"evaluation.strides {', '.join(self.strides)}: a stride is named twice")

    def parsed_strides(self) -> list[Stride]:
        """Return the strides as numbers.

        Raises:
            ConfigError: one cannot be read.
        """
        try:
            return [parse_stride(text) for text in self.strides]
        except ConfigError as error:
            raise ConfigError(f"evaluation.strides: {error}") from error
