"""Build long-context training data: `python tools/build_long_context.py long-vqa|long-mr OUT ...`."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_v2pe.base.command import finished, run_tool

if TYPE_CHECKING:
    from megatron_v2pe.workshop.long_context.built import Builder
    from megatron_v2pe.workshop.long_context.pipeline import Encoding
    from megatron_v2pe.workshop.long_context.write import Summary

EXAMPLES = """examples, from the top of the repository, after `bash scripts/quickstart.sh` has made the data they take:
  python tools/build_long_context.py long-vqa work_dirs/long_vqa --checkpoint work_dirs/quickstart/hf \\
    --meta-path work_dirs/quickstart/data/meta.json --text README.md docs/*.md --target-tokens 1024:2048 --samples 20 \\
    --mix-annotations
  python tools/build_long_context.py long-vqa work_dirs/long_vqa_paste --checkpoint work_dirs/quickstart/hf \\
    --meta-path work_dirs/quickstart/data/meta.json --form paste --target-tokens 512 --samples 20 \\
    --mix-annotations --reuse-images
  python tools/build_long_context.py long-mr work_dirs/long_mr --checkpoint work_dirs/quickstart/hf \\
    --meta-path work_dirs/quickstart/data/meta.json --text README.md docs/*.md \\
    --needle-images work_dirs/quickstart/data/image/photos --target-tokens 4096 --samples 32

OUT then holds annotation.jsonl, images/, meta.json (for --data.meta-path of tools/train.py) and report.json; for
long-mr also mm_niah/TASK.jsonl with the fields of MM-NIAH. Options are explained in docs/long_context_data.md."""

TASKS_HELP = (
    "text_retrieval, text_retrieval_fake, text_counting, text_reasoning, image_retrieval, image_counting, "
    "image_reasoning_jigsaw, image_reasoning_multiview"
)


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="long-vqa|long-mr")
    vqa = commands.add_parser(
        "long-vqa", help="ask about one or several of many images", epilog=EXAMPLES, formatter_class=formatter
    )
    needles = commands.add_parser(
        "long-mr", help="hide needles in text and images", epilog=EXAMPLES, formatter_class=formatter
    )
    for command in (vqa, needles):
        _add_common(command)
    vqa.add_argument(
        "--text",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="fill what whole images leave of the target with this text, to the last token",
    )
    vqa.add_argument(
        "--form",
        choices=("image", "paste"),
        default="image",
        help="every image by itself, or several pasted onto canvases (default: image)",
    )
    vqa.add_argument(
        "--mix-annotations",
        action="store_true",
        help="take the images of a sample from all annotations of the data list, not from its question's",
    )
    vqa.add_argument(
        "--questions",
        type=int,
        default=1,
        metavar="K",
        help="questions of a sample, a turn each, about different lines' images (default: 1)",
    )
    vqa.add_argument(
        "--paste-grid", default="3x3", metavar="CxR", help="paste form: columns and rows of a canvas (default: 3x3)"
    )
    vqa.add_argument(
        "--paste-cell",
        type=int,
        metavar="PIXELS",
        help="paste form: side of a cell (default: the checkpoint's tile size)",
    )
    needles.add_argument(
        "--text",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="background text: UTF-8 files, paragraphs parted by blank lines, else a line each",
    )
    needles.add_argument(
        "--tasks", nargs="+", metavar="TASK", help=f"tasks in turn (default: all that the inputs allow): {TASKS_HELP}"
    )
    needles.add_argument(
        "--needle-images",
        type=Path,
        metavar="FOLDER",
        help="pictures to hide, for the image tasks; 4 or more for those with choices",
    )
    needles.add_argument(
        "--image-share",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="part of the haystack's tokens that images have, 0 to 1 (default: 0.5)",
    )
    needles.add_argument(
        "--depths",
        nargs="+",
        type=float,
        default=[],
        metavar="DEPTH",
        help="depths of needles, 0 to 1, in turn (default: drawn anywhere)",
    )
    needles.add_argument(
        "--fake-needles", type=int, default=3, metavar="N", help="fake needles of text_retrieval_fake (default: 3)"
    )
    needles.add_argument(
        "--fake-needles-everywhere",
        type=int,
        default=0,
        metavar="N",
        help="fake needles of the other text tasks (default: 0)",
    )
    return parser


def _add_common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("out", type=Path, metavar="OUT", help="folder to create")
    add(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="HF folder, Megatron checkpoint, or run: its tokenizer, tile size and template count the tokens",
    )
    add("--meta-path", type=Path, metavar="LIST", help="data list whose annotations give images and questions")
    add("--annotation", type=Path, metavar="FILE", help="one annotation file in its place")
    add("--root", default="", metavar="FOLDER", help="put before the image paths of --annotation")
    add(
        "--target-tokens",
        required=True,
        metavar="N|LOW:HIGH",
        help="length of a sample as training counts it, answer included; a range is drawn from, sample by sample",
    )
    add("--samples", type=int, required=True, metavar="N", help="how many to make")
    add("--seed", type=int, default=0, metavar="SEED", help="of all draws (default: 0)")
    add("--reuse-images", action="store_true", help="show an image again where the annotation has too few for a sample")
    add("--template", metavar="NAME", help="conversation template (default: the checkpoint's)")
    add(
        "--max-dynamic-patch",
        type=int,
        default=12,
        metavar="N",
        help="most tiles of an image, as in training; written into the data list (default: 12)",
    )
    add(
        "--min-dynamic-patch",
        type=int,
        default=1,
        metavar="N",
        help="fewest tiles of an image, as data.min_dynamic_patch of the training run (default: 1)",
    )
    add("--no-dynamic-image-size", action="store_true", help="one tile an image; written into the data list")
    add("--no-thumbnail", action="store_true", help="for training runs with data.use_thumbnail false")
    add(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that make samples; changes nothing but the time (default: 0, this one)",
    )
    add("--overwrite", action="store_true", help="replace a data set of this tool that is there")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    arguments = _parser().parse_args(argv)
    from megatron_v2pe.base.logging import quiet_expected_warnings, setup_logging

    quiet_expected_warnings()
    setup_logging()
    return finished(lambda: _make(arguments))  # imports torch, seconds; --help need not wait


def _make(arguments: argparse.Namespace) -> None:
    start = time.monotonic()
    summary = _build(arguments)
    lengths, tiles = summary.lengths, max(1, *summary.tiles)
    print(
        f"{arguments.out}: {len(lengths)} samples of {min(lengths)} to {max(lengths)} tokens in "
        f"{time.monotonic() - start:.1f} s; train on them with --data.meta-path {arguments.out / 'meta.json'} "
        f"--data.max-seq-length {max(lengths)} --data.max-packed-tokens {max(lengths)} "
        f"--data.num-images-expected {tiles}"
    )


def _build(arguments: argparse.Namespace) -> Summary:
    from megatron_v2pe.checkpoint.folder import new_folder
    from megatron_v2pe.errors import ConfigError
    from megatron_v2pe.workshop.long_context.write import REPORT, write_data_set

    for option in ("samples", "workers", "questions"):
        fewest = 0 if option == "workers" else 1
        if getattr(arguments, option, fewest) < fewest:
            raise ConfigError(f"--{option} {getattr(arguments, option)}: expected {fewest} or more")
    final = Path(os.path.abspath(arguments.out))
    with new_folder(final, arguments.overwrite, REPORT) as folder:
        builder = (_long_vqa if arguments.command == "long-vqa" else _long_mr)(arguments)
        return write_data_set(builder, arguments.samples, folder, final, final.name, arguments.workers)


def _encoding(arguments: argparse.Namespace) -> Encoding:
    from megatron_v2pe.checkpoint.resolve import find_checkpoint
    from megatron_v2pe.checkpoint.trained import trained_model
    from megatron_v2pe.data.tokenizer import Tokenizer
    from megatron_v2pe.workshop.long_context.pipeline import Encoding

    place = find_checkpoint(arguments.checkpoint, "--checkpoint")
    config = trained_model(place.folder)
    template = arguments.template or config.template
    tokenizer = Tokenizer.of_model(place.hf, config.llm.vocab_size, template)
    return Encoding(
        tokenizer,
        template=template,
        tile_size=config.tile_size,
        tokens_per_tile=config.tokens_per_tile,
        max_dynamic_patch=arguments.max_dynamic_patch,
        min_dynamic_patch=arguments.min_dynamic_patch,
        dynamic_image_size=not arguments.no_dynamic_image_size,
        use_thumbnail=not arguments.no_thumbnail,
    )


def _long_vqa(arguments: argparse.Namespace) -> Builder:
    from megatron_v2pe.workshop.long_context.budget import TokenBudget
    from megatron_v2pe.workshop.long_context.draws import TokenRange
    from megatron_v2pe.workshop.long_context.forms import ImageForm, PasteForm
    from megatron_v2pe.workshop.long_context.image_pool import ImagePool
    from megatron_v2pe.workshop.long_context.long_vqa import LongVqaBuilder, LongVqaSettings
    from megatron_v2pe.workshop.long_context.pipeline import open_datasets
    from megatron_v2pe.workshop.long_context.text_source import TextSource

    settings = LongVqaSettings(
        arguments.seed, TokenRange.parse(arguments.target_tokens), arguments.questions, arguments.reuse_images
    )
    encoding = _encoding(arguments)
    budget = TokenBudget(encoding)
    form = ImageForm(budget)
    if arguments.form == "paste":
        form = PasteForm.parse(budget, arguments.paste_grid, arguments.paste_cell or encoding.tile_size)
    datasets = open_datasets(arguments.meta_path, arguments.annotation, arguments.root)
    text = TextSource(arguments.text, encoding) if arguments.text else None
    groups = [datasets] if arguments.mix_annotations else [[dataset] for dataset in datasets]
    return LongVqaBuilder([ImagePool(group, encoding) for group in groups], budget, form, settings, text)


def _long_mr(arguments: argparse.Namespace) -> Builder:
    from megatron_v2pe.workshop.long_context.budget import TokenBudget
    from megatron_v2pe.workshop.long_context.draws import TokenRange
    from megatron_v2pe.workshop.long_context.image_needles import NeedleImages, needed
    from megatron_v2pe.workshop.long_context.image_pool import ImagePool, folder_images
    from megatron_v2pe.workshop.long_context.long_mr import LongMrBuilder, LongMrSettings
    from megatron_v2pe.workshop.long_context.needles import IMAGE_TASKS, TEXT_TASKS
    from megatron_v2pe.workshop.long_context.pipeline import open_datasets
    from megatron_v2pe.workshop.long_context.text_source import TextSource

    with_images = arguments.needle_images is not None and arguments.image_share > 0
    tasks = tuple(arguments.tasks or (*TEXT_TASKS, *(IMAGE_TASKS if with_images else ())))
    settings = LongMrSettings(
        arguments.seed,
        TokenRange.parse(arguments.target_tokens),
        tasks,
        arguments.image_share,
        tuple(arguments.depths),
        arguments.fake_needles,
        arguments.fake_needles_everywhere,
        arguments.reuse_images,
    )
    settings.validate()
    encoding = _encoding(arguments)
    without_images = arguments.image_share == 0 and not arguments.meta_path and not arguments.annotation
    datasets = [] if without_images else open_datasets(arguments.meta_path, arguments.annotation, arguments.root)
    pictures = None
    if arguments.needle_images is not None and set(tasks) & set(IMAGE_TASKS):
        paths = folder_images(arguments.needle_images)
        pictures = NeedleImages.measure(paths, encoding.tile_size, needed(tasks), arguments.needle_images)
    text = TextSource(arguments.text, encoding)
    pool = ImagePool(datasets, encoding) if datasets else None
    return LongMrBuilder(pool, TokenBudget(encoding), settings, text, pictures)


if __name__ == "__main__":
    run_tool(main)
