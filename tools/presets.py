"""List the published models by name with their shapes, or write the config.json of one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_v2pe.base.command import finished, run_tool
from megatron_v2pe.base.whole_files import write_text
from megatron_v2pe.errors import ConfigError

EXAMPLES = """Examples:

  python tools/presets.py                                   all of them, with exact numbers of parameters
  python tools/presets.py InternVL3-8B                      its config.json, in the original layout
  python tools/presets.py InternVL3-8B --layout native      the same as transformers' own class has it
  python tools/presets.py InternVL3-8B --write FOLDER       a folder with that file, which is all a plan needs
  python tools/presets.py InternVL3-8B --write FOLDER --small --weights
                                                            small widths and random weights: a model to try things with

A preset stands in where there is no checkpoint: `tools/train.py --dry-run --model.preset InternVL3-38B`. The numbers
are second-hand (megatron_v2pe/models/preset_table.py says from where); a checkpoint's own config.json always counts."""


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", help="a preset; without one all are listed")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write config.json into a new or empty folder")
    parser.add_argument(
        "--layout", choices=("original", "native"), default="original", help="of config.json (default: %(default)s)"
    )
    parser.add_argument(
        "--small", action="store_true", help="small widths, with the same heads per group, norms, biases"
    )
    parser.add_argument("--weights", action="store_true", help="with --write: random weights as well, in bfloat16")
    arguments = parser.parse_args(argv)
    if arguments.weights and arguments.write is None:
        parser.error("--weights goes with --write FOLDER")
    if arguments.weights and arguments.layout != "original":
        parser.error("--weights goes with --layout original; tools/convert_checkpoint.py hf-to-hf makes the other")
    if arguments.name is None and (arguments.write is not None or arguments.small):
        parser.error("name a preset; without arguments all are listed")
    return finished(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from megatron_v2pe.models.presets import image_token, preset_config, reduced

    if arguments.name is None:
        print("\n".join(_table()))
        return
    config = preset_config(arguments.name)
    if arguments.small:
        config = reduced(config)
    if arguments.layout == "native":
        from megatron_v2pe.models.native_config import to_native

        last = config["llm_config"]["vocab_size"] - 1
        config = to_native(config, last if arguments.small else image_token(arguments.name))
    text = json.dumps(config, indent=2) + "\n"
    folder = arguments.write
    if folder is None:
        print(text, end="")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is in use; name a new or empty folder")
    if arguments.weights:
        from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder

        count = write_hf_folder(folder, config)
        print(f"{folder}: config.json and {count:,} parameters of random weights; there is no tokenizer")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", text)
    print(f"{folder}: config.json; there are neither weights nor a tokenizer")


def _table() -> Iterator[str]:
    """Yield a line for each preset, columns aligned."""
    from megatron_v2pe.models.config import InternVLConfig
    from megatron_v2pe.models.memory import stored_parameters
    from megatron_v2pe.models.preset_table import LANGUAGE_SHAPES, PRESETS
    from megatron_v2pe.models.presets import preset_config

    head = (
        "preset",
        "parameters",
        "tower",
        "language model",
        "layers/hidden/heads/groups/ffn",
        "vocabulary",
        "template",
    )
    rows: list[tuple[str, ...]] = [head]
    for name, preset in PRESETS.items():
        shape = LANGUAGE_SHAPES[preset.language]
        sizes = (shape.layers, shape.hidden_size, shape.heads, shape.groups, shape.ffn)
        count = stored_parameters(InternVLConfig.from_hf(preset_config(name), f"preset {name}"))
        row = (f"{count:,}", preset.tower, preset.language, "/".join(map(str, sizes)), f"{preset.vocab_size:,}")
        rows.append((name, *row, preset.template))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    right = {1, 5}
    for row in rows:
        cells = [
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


if __name__ == "__main__":
    run_tool(main)
