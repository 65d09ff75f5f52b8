"""Looks at an HF tensor while rows of a Megatron-Core tensor pass by: are its values numbers, and what is its SHA-256.

A SHA-256 takes the bytes in the HF tensor's order. Most tensors have their rows in that order in the rows that pass, or
are whole in one stretch of them. The others are read once more, in their own order.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from megatron_v2pe.checkpoint.hf.finite import Examination
from megatron_v2pe.checkpoint.hf.job import Job
from megatron_v2pe.checkpoint.hf.mappings import TensorMapping
from megatron_v2pe.checkpoint.hf.pipeline import Pipeline, SharedBuffer
from megatron_v2pe.checkpoint.hf.row_sources import HFTensors

_EXAMINED_AT_ONCE = 1 << 18


class Look:
    """Has one HF tensor looked at, in the type it is converted to."""

    def __init__(
        self, tensors: HFTensors, mapping: TensorMapping, dtype: torch.dtype, pipeline: Pipeline, job: Job
    ) -> None:
        """Name the tensor and the type."""
        self._tensors, self._mapping, self._dtype, self._job = tensors, mapping, dtype, job
        self._examination = Examination(mapping.name, dtype, mapping.shape)
        self._pipeline = pipeline
        self._runs = sorted(
            (run for run in tensors.runs_of(mapping.name) if run.hf_row is not None), key=lambda run: run.hf_row or 0
        )
        self._width, self._examiner = tensors.row_bytes(mapping.name), 0

    def begin(self, before: Mapping[str, str], whole: bool) -> bool:
        """Begin; return whether the rows that pass are wanted.

        Args:
            before: SHA-256 of the tensors that an earlier process has looked at.
            whole: all rows of the Megatron-Core tensor pass at once.
        """
        name, mapping = self._mapping.name, self._mapping
        if name in before:
            self._job.take_over(name, self._dtype, mapping.shape, before[name])
            return False
        self._examiner = self._pipeline.examiner_for(mapping.shape[0] * self._width)
        self._pipeline.examine(self._examiner, partial(self._tensors.check_padding, name))
        rows = [run.key_row for run in self._runs]
        as_it_passes = mapping.columns is None and self._tensors.dtype(name) == self._dtype
        if as_it_passes and (whole or rows == sorted(rows)):
            return True
        self._pipeline.examine(self._examiner, self._read_again)
        self.end()
        return False

    def at(self, first_row: int, rows: int, content: memoryview, buffer: SharedBuffer) -> None:
        """Have the tensor's rows looked at that are among some which pass.

        Args:
            first_row: of the Megatron-Core tensor.
            rows: how many pass.
            content: their bytes.
            buffer: holds them.
        """
        parts: list[memoryview] = []
        for run in self._runs:
            low, high = max(first_row, run.key_row), min(first_row + rows, run.key_row + run.rows)
            if low < high:
                parts.append(content[(low - first_row) * self._width : (high - first_row) * self._width])

        def look() -> None:
            for part in parts:
                self._examination.update(part)

        if parts:
            self._pipeline.examine(self._examiner, look, buffer)

    def end(self) -> None:
        """Have the result taken: all rows have passed."""
        self._pipeline.conclude(self._examiner, self._examination, self._job.note)

    def _read_again(self) -> None:
        name, stored, width = self._mapping.name, self._tensors.dtype(self._mapping.name), self._width
        buffer = memoryview(bytearray(max(width, _EXAMINED_AT_ONCE)))
        for first, rows in self._tensors.stretches(name, _EXAMINED_AT_ONCE):
            block = buffer[: rows * width]
            self._tensors.read(name, first, block)
            if self._dtype != stored and len(block):
                values = torch.frombuffer(block, dtype=stored).to(self._dtype).view(torch.uint8).numpy()
                block = memoryview(values)  # pyright: ignore[reportArgumentType]
            self._examination.update(block)
