"""Every benchmark by name, and the names users type: groups, and the tasks of the published scripts.

Names are compared without regard to capitals, and `-` is `_`. Groups: `general` (what the published
`evaluate_auto.sh` runs), `chartqa`, `docvqa`, ..., `mmniah`, `mmniah_val`, `mmniah_long`, `milebench`, `longvqa`,
`longvqa_32k`, and `all`. A file of one's own questions (`*.jsonl`) stands beside them, see `own_questions`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.evaluate.benchmarks import long_vqa, milebench, mm_niah, mm_niah_long
from megatron_v2pe.evaluate.benchmarks.ai2d import Ai2d
from megatron_v2pe.evaluate.benchmarks.chartqa import ChartQaAugmented, ChartQaHuman
from megatron_v2pe.evaluate.benchmarks.docvqa import DocVqaTest, DocVqaVal
from megatron_v2pe.evaluate.benchmarks.gqa import GqaTestdev, GqaTestdevLlava
from megatron_v2pe.evaluate.benchmarks.infovqa import InfoVqaTest, InfoVqaVal
from megatron_v2pe.evaluate.benchmarks.mmbench import (
    CcBench,
    MmBenchDev,
    MmBenchDevCn,
    MmBenchDevEn,
    MmBenchTestCn,
    MmBenchTestEn,
)
from megatron_v2pe.evaluate.benchmarks.mmmu import MmmuDev, MmmuTest, MmmuVal
from megatron_v2pe.evaluate.benchmarks.mvbench import MvBench
from megatron_v2pe.evaluate.benchmarks.ocrvqa import OcrVqaTest, OcrVqaVal
from megatron_v2pe.evaluate.benchmarks.okvqa import OkVqaVal
from megatron_v2pe.evaluate.benchmarks.own_questions import SUFFIX, own_questions
from megatron_v2pe.evaluate.benchmarks.pope import Pope
from megatron_v2pe.evaluate.benchmarks.published import Mode, PublishedBenchmark
from megatron_v2pe.evaluate.benchmarks.scienceqa import ScienceQa
from megatron_v2pe.evaluate.benchmarks.seed import Seed
from megatron_v2pe.evaluate.benchmarks.textvqa import TextVqaVal, TextVqaValOcr
from megatron_v2pe.evaluate.benchmarks.video_mme import VideoMme
from megatron_v2pe.evaluate.benchmarks.vizwiz import VizWizTest, VizWizVal
from megatron_v2pe.evaluate.benchmarks.vqav2 import VqaV2Testdev, VqaV2Val
from megatron_v2pe.evaluate.embedded_images import CACHE

_SINGLE: tuple[type[PublishedBenchmark], ...] = (
    *(ChartQaHuman, ChartQaAugmented, DocVqaVal, DocVqaTest, InfoVqaVal, InfoVqaTest, Ai2d, ScienceQa, Pope),
    *(MmmuDev, MmmuVal, MmmuTest, MmBenchDev, MmBenchDevEn, MmBenchDevCn, MmBenchTestEn, MmBenchTestCn, CcBench, Seed),
    *(TextVqaVal, TextVqaValOcr, VqaV2Val, VqaV2Testdev, OkVqaVal, VizWizVal, VizWizTest, GqaTestdev, GqaTestdevLlava),
    *(OcrVqaVal, OcrVqaTest, MvBench, VideoMme),
)

BENCHMARKS: dict[str, Callable[..., PublishedBenchmark]] = {
    **{benchmark.name: benchmark for benchmark in _SINGLE},
    **mm_niah.BENCHMARKS,
    **mm_niah_long.BENCHMARKS,
    **milebench.BENCHMARKS,
    **long_vqa.BENCHMARKS,
}
"""Name -> constructor, which takes `mode` and `cache`."""

_CHARTQA = ("chartqa_human", "chartqa_augmented")
_GENERAL = (
    *(*_CHARTQA, "docvqa_val", "ai2d", "infovqa_val", "scienceqa", "pope", "mmmu_val", "mmbench_test_en", "seed"),
)


def _starting(prefix: str) -> tuple[str, ...]:
    return tuple(name for name in BENCHMARKS if name.startswith(prefix))


GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(BENCHMARKS),
    "general": _GENERAL,
    "chartqa": _CHARTQA,
    "docvqa": ("docvqa_val",),
    "infovqa": ("infovqa_val",),
    "mmmu": ("mmmu_val",),
    "mmbench": ("mmbench_dev_en", "mmbench_dev_cn"),
    "textvqa": ("textvqa_val",),
    "vqav2": ("vqav2_val",),
    "okvqa": ("okvqa_val",),
    "vizwiz": ("vizwiz_val",),
    "gqa": ("gqa_testdev_llava",),
    "ocrvqa": ("ocrvqa_test",),
    "vqa": ("vqav2_val", "okvqa_val", "textvqa_val", "vizwiz_val", "gqa_testdev_llava"),
    "mmniah": (*mm_niah.BENCHMARKS,),
    "mmniah_val": _starting("mmniah_val_"),
    "mmniah_test": _starting("mmniah_test_"),
    "mmniah_long": (*mm_niah_long.BENCHMARKS,),
    "milebench": (*milebench.BENCHMARKS,),
    "longvqa": (*long_vqa.BENCHMARKS,),
    **{f"longvqa_{length}k": _starting(f"longvqa_{length}k_") for length in long_vqa.LENGTHS},
}
"""Name of a group -> names of its benchmarks."""

_ALIASES: dict[str, str] = {
    # Tasks of the published `evaluate.sh`.
    "vqa_chartqa_test": "chartqa",
    "vqa_chartqa_test_human": "chartqa_human",
    "vqa_chartqa_test_augmented": "chartqa_augmented",
    "vqa_docvqa_val": "docvqa_val",
    "vqa_docvqa_test": "docvqa_test",
    "vqa_infovqa_val": "infovqa_val",
    "vqa_infovqa_test": "infovqa_test",
    "vqa_ai2d_test": "ai2d",
    "vqa_okvqa_val": "okvqa_val",
    "vqa_textvqa_val": "textvqa_val",
    "vqa_textvqa_val_ocr": "textvqa_val_ocr",
    "vqa_vizwiz_val": "vizwiz_val",
    "vqa_vizwiz_test": "vizwiz_test",
    "vqa_vqav2_val": "vqav2_val",
    "vqa_vqav2_testdev": "vqav2_testdev",
    "vqa_gqa_testdev": "gqa_testdev_llava",
    "vqa_ocrvqa_val": "ocrvqa_val",
    "vqa_ocrvqa_test": "ocrvqa_test",
    "ccbench_dev": "ccbench",
    # Data sets of its evaluators.
    "chartqa_test_human": "chartqa_human",
    "chartqa_test_augmented": "chartqa_augmented",
    "infographicsvqa_val": "infovqa_val",
    "infographicsvqa_test": "infovqa_test",
    "ai2diagram_test": "ai2d",
    "ai2d_test": "ai2d",
    "sqa_test": "scienceqa",
    "scienceqa_test": "scienceqa",
    "seedv1": "seed",
    "mmmu_validation": "mmmu_val",
    "mmbench_dev_20230712": "mmbench_dev",
    **{f"mmbench_{split}_20231003": f"mmbench_{split}" for split in ("dev_en", "dev_cn", "test_en", "test_cn")},
    "ccbench_dev_cn": "ccbench",
    # The README's names of the long-context suites, and the tasks of their scripts.
    "mm_niah": "mmniah",
    "mm_niah_1m": "mmniah_long",
    "mm_niah_long": "mmniah_long",
    "long_vqa": "longvqa",
    "video_mme": "videomme",
    "auto": "general",
    **{
        f"{task}_{needle}_{split}": f"mmniah_{split}_{task}_{needle}"
        for split in ("val", "test")
        for task, needle in mm_niah.TASKS
    },
    **{f"retrieval_image_test_{length.lower()}": f"mmniah_long_{length.lower()}" for length in mm_niah_long.LENGTHS},
    **{f"longvqa_{length}": f"longvqa_{length}k" for length in long_vqa.LENGTHS},
    **{
        f"longvqa_{task}_{length}": f"longvqa_{length}k_{task}"
        for length in long_vqa.LENGTHS
        for task in long_vqa.TASKS
    },
}
"""Other name -> name of a benchmark or group."""
_FILES = (".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet")
"""How names of files end that are taken for questions."""


def expand(words: Sequence[str], root: Path | None = None) -> list[str]:
    """Return the benchmarks that names, groups and published task names stand for, each once, in order.

    Args:
        words: as typed; several may stand in one, separated by commas. A file of one's own questions (`*.jsonl`)
            stands for itself.
        root: folder the paths of such files are relative to; one that is not there but here is named by its whole path,
            as a shell completes it.

    Raises:
        ConfigError: a name is unknown (suggests near ones), or two files of questions have the same name.
    """
    names: dict[str, None] = {}
    for word in (part for text in words for part in text.split(",") if part.strip()):
        if word.strip().endswith(SUFFIX):
            names[_file(word.strip(), root)] = None
            continue
        typed = word.strip().lower().replace("-", "_")
        name = _ALIASES.get(typed, typed)
        if name not in GROUPS and name not in BENCHMARKS:
            if Path(word.strip()).is_dir():
                raise ConfigError(f"{word.strip()}: a folder; name its files of questions, {word.strip()}/*{SUFFIX}")
            if "/" in word or Path(word.strip()).suffix.lower() in _FILES:
                raise ConfigError(
                    f"{word.strip()}: questions of one's own are a JSON lines file, whose name ends in {SUFFIX}"
                )
            near = difflib.get_close_matches(name, (*BENCHMARKS, *GROUPS, *_ALIASES), n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"groups are {', '.join(GROUPS)}; --list names all"
            raise ConfigError(f"{word.strip()}: no such benchmark; {hint}")
        names |= dict.fromkeys(GROUPS.get(name, (name,)))
    _check_folders(names)
    return list(names)


def _file(word: str, root: Path | None) -> str:
    """Return the path of a file of questions, below a root or as it is."""
    here = root is not None and not os.path.lexists(root / word) and os.path.lexists(word)
    return os.path.abspath(word) if here else word


def _check_folders(names: Iterable[str]) -> None:
    """Refuse two benchmarks whose answers would be kept in one folder, as only files of questions can have."""
    seen: dict[str, str] = {}
    for name in names:
        folder = create(name).name
        if folder in seen:
            raise ConfigError(f"{seen[folder]} and {name} would share the folder {folder}/ for answers; rename a file")
        seen[folder] = name
        if name.endswith(SUFFIX) and folder in BENCHMARKS:
            raise ConfigError(
                f"{name}: its answers would be kept as those of the benchmark {folder}, and scored as such; rename the "
                "file"
            )


def create(name: str, mode: Mode = "corrected", cache: Path = CACHE) -> PublishedBenchmark:
    """Return a benchmark.

    Args:
        name: of a single one, or a file of questions, as `expand` returns them.
        mode: how it asks where the published way has a defect.
        cache: folder for images that stand inside of other files.

    Raises:
        ConfigError: unknown name or mode.
    """
    if name.endswith(SUFFIX):
        return own_questions(name, mode, cache)
    if name not in BENCHMARKS:
        raise ConfigError(f"{name}: no such benchmark")
    return BENCHMARKS[name](mode=mode, cache=cache)
