"""Small made-up sets in the exact format of every benchmark, so that evaluation runs end to end without a download.

Pictures show one coloured shape each, and questions ask for its colour; a few questions a file. Paths and fields are
those of the published files, written down a second time in `benchmark_sets/` beside this, so that tests compare two
independent statements. MMMU and Video-MME are written as Parquet where PyArrow is installed, otherwise as JSON lines;
videos need PyAV (the `video` extra).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from megatron_v2pe.errors import DataError
from megatron_v2pe.workshop.synthetic.benchmark_sets import choices, long_context, single_image, videos
from megatron_v2pe.workshop.synthetic.benchmark_sets.files import Maker

_WRITERS = {**single_image.WRITERS, **choices.WRITERS, **videos.WRITERS}


def write_benchmark(root: Path, name: str, seed: int = 0, questions: int = 4, parquet: bool | None = None) -> None:
    """Write a small set in a benchmark's format.

    Args:
        root: folder the published paths are relative to.
        name: of a benchmark, as the registry has it.
        seed: of all draws.
        questions: of a file, 3 to 5; some benchmarks have a number of their own.
        parquet: write Parquet where that is the published form; None: if PyArrow is installed.

    Raises:
        DataError: no set of that name can be made, or a video is to be written without PyAV.
    """
    writer = _WRITERS.get(name) or next((made for begin, made in long_context.FAMILIES if name.startswith(begin)), None)
    if writer is None:
        raise DataError(f"{name}: there is no made-up set of this benchmark")
    if not 3 <= questions <= 5:
        raise DataError(f"{questions} questions: expected 3 to 5")
    if parquet is None:
        parquet = importlib.util.find_spec("pyarrow") is not None
    writer(Maker(root, seed, name, questions, parquet))
