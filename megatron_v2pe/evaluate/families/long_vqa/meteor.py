"""How near captions come to true ones, stems, synonyms and paraphrases counting: METEOR 1.5.

Source: Denkowski and Lavie, 2014. No task of V2PE uses it; it is one of the metrics its Long-VQA scorer can be asked
for. Its tables (a paraphrase table of 62 MB, WordNet's synonyms) and its aligner come as a Java program with the
package `pycocoevalcap`; where that package and Java are installed it is called as the reference calls it, elsewhere
METEOR is refused.
"""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Sequence
from functools import cache
from typing import Any

from megatron_v2pe.errors import DataError, how_to_install


def meteor(captions: Sequence[Sequence[str]], truths: Sequence[Sequence[Sequence[str]]]) -> float:
    """Return METEOR of captions, each with its true captions, as one corpus.

    Raises:
        DataError: the package or Java is not installed.
    """
    score, _ = _program().compute_score(
        {number: [" ".join(words) for words in references] for number, references in enumerate(truths)},
        {number: [" ".join(words)] for number, words in enumerate(captions)},
    )
    return float(score)


@cache
def _program() -> Any:
    """Start the program; it reads its tables for some ten seconds and serves until `stop` or the end of the process."""
    try:
        from pycocoevalcap.meteor.meteor import Meteor  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(f"METEOR needs the package pycocoevalcap: {how_to_install('meteor')}") from error
    if shutil.which("java") is None:
        raise DataError(
            "METEOR needs Java on the path: it is a Java program; install one (apt-get install default-jre-headless)"
        )
    program = Meteor()
    atexit.register(program.meteor_p.kill)
    return program


def stop() -> None:
    """End the program, if it runs."""
    if _program.cache_info().currsize:
        process = _program().meteor_p
        _program.cache_clear()
        process.kill()
        process.wait()
