"""What tools that make, check or show data take beside their own arguments: settings of training, a tokenizer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_v2pe.data.encode import ModelFacts
    from megatron_v2pe.data.tokenizer import Tokenizer
    from megatron_v2pe.train.cli import Recipes
    from megatron_v2pe.train.config import ExperimentConfig

DEFAULT_TILE_SIZE, DEFAULT_TOKENS_PER_TILE = 448, 256
"""Sizes of InternVL2, taken where there is a tokenizer and no checkpoint."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what stands in for a checkpoint where only a tokenizer is at hand; imports nothing slow."""
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer's folder; default: the checkpoint's")
    parser.add_argument(
        "--tile-size", type=int, metavar="PIXELS", help=f"side of a tile without a checkpoint: {DEFAULT_TILE_SIZE}"
    )
    parser.add_argument(
        "--tokens-per-tile",
        type=int,
        metavar="N",
        help=f"image tokens per tile without one: {DEFAULT_TOKENS_PER_TILE}",
    )


def read_settings(words: Sequence[str], recipes: Recipes) -> ExperimentConfig:
    """Return the settings of a training command line, those of positions and data checked.

    Args:
        words: what `tools/train.py` would be given.
        recipes: named runs.

    Raises:
        ConfigError: an unknown flag, or settings that do not go together.
    """
    from megatron_v2pe.train import cli

    config = cli.parse(words, recipes)
    config.v2pe.validate()
    config.data.validate()
    return config


def tokenizer_and_facts(
    arguments: argparse.Namespace, config: ExperimentConfig
) -> tuple[Tokenizer, ModelFacts, ExperimentConfig]:
    """Find the tokenizer, and what is to be known of the model; no weights are read.

    Args:
        arguments: parsed arguments, those of `add_model_arguments` among them.
        config: `model.model_name_or_path` may be an HF folder, a Megatron checkpoint or a run.

    Raises:
        ConfigError: neither a checkpoint nor a tokenizer is named, or it is none of InternVL's.
        CheckpointError: a run's newest checkpoint is missing.
    """
    from megatron_v2pe.checkpoint.resolve import find_checkpoint, look_for_checkpoint
    from megatron_v2pe.checkpoint.trained import trained_model
    from megatron_v2pe.checkpoint.vet import verify_side_files
    from megatron_v2pe.data.encode import ModelFacts
    from megatron_v2pe.data.new_tokens import read_new_tokens_for
    from megatron_v2pe.data.tokenizer import Tokenizer
    from megatron_v2pe.errors import ConfigError

    source, said, found = config.model.model_name_or_path, "model.model_name_or_path", None
    if source and arguments.tokenizer is None:
        found = find_checkpoint(source, said)
    elif source:  # with a tokenizer it need not be there
        found = look_for_checkpoint(Path(source), said)
    place = arguments.tokenizer or config.model.tokenizer_path or (found and found.hf)
    if place is None:
        raise ConfigError("name a checkpoint (--model_name_or_path FOLDER) or a tokenizer (--tokenizer FOLDER)")
    size, tokens, rows = arguments.tile_size, arguments.tokens_per_tile, None
    if found is not None:
        if config.checkpoint.verify and not found.is_hf:
            verify_side_files(found.folder)
        model = trained_model(found.folder)
        size, tokens = size or model.tile_size, tokens or model.tokens_per_tile
        rows = model.llm.vocab_size
        config = config.with_template(model.template)
    tokenizer = Tokenizer.of_model(place, rows, config.data.template_name)
    if config.model.add_tokens is not None:
        listed = read_new_tokens_for(Path(config.model.add_tokens), tokenizer, config.data.template_name)
        tokenizer = tokenizer.with_tokens([token.added for token in listed])
    return tokenizer, ModelFacts(size or DEFAULT_TILE_SIZE, tokens or DEFAULT_TOKENS_PER_TILE), config
