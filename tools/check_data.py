"""Check before a long run that every file its data list names is there; say what is missing and where it belongs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_v2pe.command import finished, run_tool

EXAMPLES = """The data list is given as a file, or by the settings of training (`tools/train.py --help`). Its paths are
relative to the folder the command is started in, as in training:

  python tools/check_data.py dataset/annotation_train_32k.json
  python tools/check_data.py --recipe internvl2_2b_v2pe_32k --dataset-root dataset --full

or it is an indexed data set, every byte of which is compared with its checksums:

  python tools/check_data.py --indexed dataset/indexed_32k

An example that runs as it is, after `bash scripts/quickstart.sh`:

  python tools/check_data.py work_dirs/quickstart/data/meta.json --full

The exit status is 0 if nothing is missing, 1 if a file is missing, damaged, or a line cannot be read, 2 if the command
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
    parser.add_argument("--full", action="store_true", help="also read the header of every image and video")
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
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, 1 if something is missing, 2 for what the user can mend."""
    arguments, words = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    return finished(lambda: _check(arguments, words))  # imports torch, seconds; --help need not wait


def _check(arguments: argparse.Namespace, words: list[str]) -> int:
    from megatron_v2pe.data.checking.check import check_data_list
    from megatron_v2pe.data.checking.published_layout import look_for_folders
    from megatron_v2pe.data.checking.text import as_text, downloads, folders_as_text
    from megatron_v2pe.errors import ConfigError

    if arguments.indexed is not None:
        return _check_set(arguments, words)
    root, complete = arguments.dataset_root, True
    workers = (os.cpu_count() or 1) if arguments.workers is None else arguments.workers
    if workers < 0 or arguments.show < 0:
        raise ConfigError(f"--workers {workers}, --show {arguments.show}: expected 0 or more")
    content: dict[str, Any] = {}
    if words or root is None:
        path = _data_list(words)
        checks = check_data_list(path, workers, arguments.full, arguments.show)
        complete = all(check.complete for check in checks)
        datasets = [asdict(check) | {"complete": check.complete} for check in checks]
        content = {"list": path, "datasets": datasets, "downloads": asdict(downloads(checks))}
        if not arguments.json:
            print(as_text(path, checks), end="")
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


def _data_list(words: list[str]) -> str:
    """Return the data list a command line names: its first word, or by settings of training."""
    from megatron_v2pe.errors import ConfigError
    from megatron_v2pe.recipes.registry import RECIPES
    from megatron_v2pe.train import cli

    path = None
    if words and not words[0].startswith("-") and "=" not in words[0]:
        path, *words = words
    config = cli.parse(words, RECIPES)
    path = path or config.data.meta_path
    if not path:
        raise ConfigError("name a data list: a file, a --recipe, --data.meta-path; or a --dataset-root")
    return path


if __name__ == "__main__":
    run_tool(main)
