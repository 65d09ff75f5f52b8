"""Check before a long run that training can use its data list; say what is missing and what would be refused."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_v2pe.base.command import finished, run_tool
from megatron_v2pe.train.data_tools import add_model_arguments, tokenizer_and_facts

if TYPE_CHECKING:
    from megatron_v2pe.train.config import ExperimentConfig
    from megatron_v2pe.workshop.checking.samples import SampleChecker

EXAMPLES = """The data list is given as a file, or by the settings of training (`tools/train.py --help`). Its paths are
relative to the folder the command is started in, as in training:

  python tools/check_data.py dataset/annotation_train_32k.json
  python tools/check_data.py --recipe internvl2_2b_v2pe_32k --dataset-root dataset --full

Every line is taken through the steps of training. With the settings of a run and its checkpoint (or --tokenizer) that
includes its length in tokens and tiles; without, the last lines say what was not looked at. With both, and --full,
training refuses no sample that this check passes.

or it is an indexed data set, every byte of which is compared with its checksums:

  python tools/check_data.py --indexed dataset/indexed_32k

An example that runs as it is, after `bash scripts/quickstart.sh`:

  python tools/check_data.py work_dirs/quickstart/data/meta.json --full

The exit status is 0 if nothing is missing, 1 if a file is missing or damaged or a line cannot be used, 2 if the command
cannot be carried out. --dataset-root looks for every folder of V2PE-Data, those of evaluation (val/) included, and
counts absent ones as missing."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [LIST.json] [options] [settings of training]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--full", action="store_true", help="also read every image and video to the last pixel")
    parser.add_argument("--headers", action="store_true", help="also read their headers; faster than --full")
    parser.add_argument(
        "--dataset-root", metavar="FOLDER", help="also look for the published folders below this one: dataset"
    )
    parser.add_argument(
        "--indexed", metavar="FOLDER", help="compare every byte of an indexed data set with its checksums instead"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--show", type=int, default=5, metavar="N", help="faults of a kind named per data set, all counted; default: 5"
    )
    parser.add_argument(
        "--workers", type=int, default=None, metavar="N", help="processes; default: one per core, 0: this one alone"
    )
    add_model_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, 1 if something is missing, 2 for what the user can mend."""
    arguments, words = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    return finished(lambda: _check(arguments, words))  # imports torch, seconds; --help need not wait


def _check(arguments: argparse.Namespace, words: list[str]) -> int:
    from megatron_v2pe.data.published_layout import look_for_folders
    from megatron_v2pe.errors import ConfigError
    from megatron_v2pe.workshop.checking.check import check_data_list
    from megatron_v2pe.workshop.checking.report import as_text, downloads, folders_as_text

    if arguments.indexed is not None:
        return _check_set(arguments, words)
    root, complete = arguments.dataset_root, True
    workers = (os.cpu_count() or 1) if arguments.workers is None else arguments.workers
    if workers < 0 or arguments.show < 0:
        raise ConfigError(f"--workers {workers}, --show {arguments.show}: expected 0 or more")
    content: dict[str, Any] = {}
    if words or root is None:
        path, config = _data_list(words)
        checker, unseen = _checker(arguments, words, config)
        checks = check_data_list(path, workers, arguments.full, arguments.show, arguments.headers, checker)
        complete = all(check.complete for check in checks)
        datasets = [asdict(check) | {"complete": check.complete} for check in checks]
        content = {"list": path, "datasets": datasets, "downloads": asdict(downloads(checks)), "not_looked_at": unseen}
        if not arguments.json:
            print(as_text(path, checks, unseen), end="")
    if root is not None:
        folders = look_for_folders(root)
        complete = complete and all(folder.state == "there" for folder in folders)
        content |= {"root": root, "folders": [asdict(folder) for folder in folders]}
        if not arguments.json:
            print(folders_as_text(root, folders), end="")
    if arguments.json:
        print(json.dumps({"complete": complete, **content}, indent=1, ensure_ascii=False))
    return 0 if complete else 1


def _check_set(arguments: argparse.Namespace, words: list[str]) -> int:
    from megatron_v2pe.data.indexed.layout import WITHOUT_CHECKSUMS
    from megatron_v2pe.data.indexed.verify import verify
    from megatron_v2pe.errors import ConfigError, DataError

    if words or arguments.dataset_root is not None:
        raise ConfigError(
            "--indexed FOLDER checks that folder and nothing else; give no list, settings or root with it"
        )
    content: dict[str, Any] = {"indexed": arguments.indexed}
    try:
        manifest = verify(Path(arguments.indexed))
    except DataError as error:
        content |= {"complete": False, "problem": str(error)}
        shown = str(error)
    else:
        checked = manifest.version != WITHOUT_CHECKSUMS
        content |= {"complete": True, "checksums": checked, "bytes": sum(manifest.sizes.values())}
        state = "nothing is damaged" if checked else "sizes are right; it has no checksums, build it again to have them"
        shown = f"{arguments.indexed}: {len(manifest.sizes)} files, {content['bytes']:,} bytes: {state}"
    print(json.dumps(content, indent=1, ensure_ascii=False) if arguments.json else shown)
    return 0 if content["complete"] else 1


def _checker(
    arguments: argparse.Namespace, words: list[str], config: ExperimentConfig
) -> tuple[SampleChecker, list[str]]:
    """Return what samples are checked with, as much as is known of the run, and what cannot be looked at."""
    from megatron_v2pe.data.conversation import get_template
    from megatron_v2pe.data.encode import DocumentEncoder
    from megatron_v2pe.errors import CheckpointError, ConfigError
    from megatron_v2pe.workshop.checking.samples import SampleChecker

    get_template(config.data.template_name)
    reads, unseen = arguments.full or arguments.headers, list[str]()
    if not reads:
        unseen.append("headers and pixels of images and videos (--headers, --full)")
    elif not arguments.full:
        unseen.append("pixels of images and frames of videos (--full)")
    remedy = "name a run's settings and checkpoint (--recipe, --model_name_or_path), or --tokenizer FOLDER"
    tokens = "lengths in tokens and tiles" if reads else "lengths in tokens"
    if not (arguments.tokenizer or config.model.tokenizer_path or config.model.model_name_or_path):
        return SampleChecker.of_text(config.data, reads), [*unseen, f"{tokens}: {remedy}"]
    try:
        tokenizer, facts, config = tokenizer_and_facts(arguments, config)
    except (ConfigError, CheckpointError) as error:
        if arguments.tokenizer:
            raise
        return SampleChecker.of_text(config.data, reads), [*unseen, f"{tokens}: {error}; {remedy}"]
    if not reads:
        unseen.append("lengths of samples with images or videos (--headers, --full)")
    encoder = DocumentEncoder(config.data, tokenizer, facts, config.v2pe.policy(0), config.train.seed)
    return SampleChecker(encoder, True, reads), unseen


def _data_list(words: list[str]) -> tuple[str, ExperimentConfig]:
    """Return the data list a command line names, its first word or by settings of training, and the settings."""
    from megatron_v2pe.errors import ConfigError
    from megatron_v2pe.recipes.registry import RECIPES
    from megatron_v2pe.train import cli

    path = None
    if words and not words[0].startswith("-") and "=" not in words[0]:
        path, *words = words
    elif len(words) > 1 and words[-1].endswith(".json") and "=" not in words[-1] and not words[-2].startswith("--"):
        *words, path = words  # every setting of training has a value, so this is none
    config = cli.parse(words, RECIPES)
    path = path or config.data.meta_path
    if not path:
        raise ConfigError("name a data list: a file, a --recipe, --data.meta-path; or a --dataset-root")
    return path, config


if __name__ == "__main__":
    run_tool(main)
