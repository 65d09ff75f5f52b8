"""Images that stand inside of a TSV or Parquet file, taken out once into a cache folder under the name of their bytes.

Questions then name files like any others: a list of them holds no pixels, however large the benchmark, and an image
that stands in several rows (MMBench asks each question up to four times) is stored once. A name is the hash of its
content, so nothing in the cache can be out of date and processes may fill it side by side.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from megatron_v2pe.base.whole_files import write_bytes
from megatron_v2pe.data.image_files import check_kind
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.images import open_image
from megatron_v2pe.foreign.printable import printable

CACHE = Path("work_dirs/evaluate_cache")
"""Where they go by default, relative to the folder evaluation is started in; never beside the data."""

LARGEST = 1 << 26
"""Bytes of an image, at most."""


def store_image(content: bytes, cache: Path, where: str) -> str:
    """Return the path of a file that holds an image's bytes.

    Args:
        content: of an image file.
        cache: folder; made if it is not there.
        where: the image was found, for what goes wrong.

    Raises:
        DataError: the bytes are no image, or one of a kind that is not read.
    """
    if len(content) > LARGEST:
        raise DataError(f"{where}: an image of {len(content)} bytes, at most {LARGEST} are read")
    try:
        with open_image(content, DataError) as image:
            check_kind(image)
            suffix = (image.format or "image").lower()
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:  # on damaged headers Pillow raises nearly anything
        raise DataError(f"{where}: {len(content)} bytes that are no image: {printable(error)[:200]}") from error
    digest = hashlib.sha256(content).hexdigest()[:32]
    path = cache / "images" / digest[:2] / f"{digest}.{suffix}"
    if not path.is_file() or path.stat().st_size != len(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content, shared=True)
    return str(path)
