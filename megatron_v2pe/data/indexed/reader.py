"""From the samples of a pack to a micro-batch; runs in the loader's worker processes."""

from __future__ import annotations

from dataclasses import dataclass

from torch.utils.data import Dataset

from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.indexed.plan import IndexedPack
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.pack_reader import PackReader, ReadPack
from megatron_v2pe.data.types import Clip, Document, SampleId
from megatron_v2pe.errors import DataError


@dataclass(frozen=True)
class IndexedReader(Dataset[ReadPack]):
    """Reads packs of an indexed data set."""

    samples: IndexedSamples
    encoder: DocumentEncoder
    """Gives strides and what else an epoch draws."""
    reader: PackReader

    def __getitem__(self, pack: IndexedPack) -> ReadPack:
        """Read one pack; a sample whose images have changed or are damaged is left out and reported."""
        documents: list[Document] = []
        unreadable: list[tuple[SampleId, str]] = []
        for sample, number in zip(pack.samples, pack.numbers, strict=True):
            try:
                documents.append(draw_document(self.samples, self.encoder, sample, pack.epoch, number))
            except DataError as error:
                unreadable.append((self._source(sample), str(error)))
        return self.reader.read(documents, unreadable, self.samples.files.open_picture)

    def _source(self, sample: int) -> SampleId:
        """Return where a sample comes from, as far as its record can be trusted."""
        try:
            return self.samples.source(sample)
        except DataError:
            return SampleId(f"sample {sample}", 0, str(self.samples.folder))


def draw_document(samples: IndexedSamples, encoder: DocumentEncoder, sample: int, epoch: int, number: int) -> Document:
    """Return a sample of an indexed set as one pass over it sees it; arguments as of `DocumentEncoder.draw`.

    Raises:
        DataError: its video has changed since the set was built.
    """
    encoded = samples[sample]
    for item in encoded.media:
        if isinstance(item, Clip) and item.file is not None:
            samples.files.check_video(item.file, item.path)
    return encoder.draw(encoded, epoch, number)
