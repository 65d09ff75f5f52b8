"""Runs that add tokens, for tests: a small base, data that hold the tokens, settings, and what a checkpoint holds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import torch

from helpers.native_models import LLMS, small_config
from helpers.tool_runs import ROOT
from megatron_v2pe.checkpoint.folder import newest
from megatron_v2pe.checkpoint.hf.api import mcore_to_hf
from megatron_v2pe.checkpoint.vet import vet_checkpoint
from megatron_v2pe.generate.native_files import side_files
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.main import run
from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder
from megatron_v2pe.workshop.synthetic.small_data import write_dataset
from megatron_v2pe.workshop.synthetic.tokenizer import read_texts, write_tokenizer

STEPS = 4
TOKENS = ("<loc_1>", "<loc_2>", "[CRACK]")
MORE = ("<loc_3>",)
TEXT = "question <loc_2><loc_1> and [CRACK] yes"


def write_base(folder: Path) -> Path:
    """Write a small model whose odd vocabulary its tokenizer fills, and data that hold the tokens to add."""
    write_dataset(folder / "data", lines=9)
    lines = folder / "data" / "all.jsonl"
    lines.write_text(lines.read_text().replace("what do you see", TEXT).replace("question 2", "[CRACK] or <loc_1>"))
    rows = write_tokenizer(folder / "hf", read_texts(folder / "data"), 400)
    llm = {**LLMS["internlm2"], "vocab_size": rows}
    config = small_config("internlm2", llm_config=llm, rope_pos_id_version="v2pe_rnd")
    write_hf_folder(folder / "hf", config, shards=1)
    (folder / "tokens.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    (folder / "more.txt").write_text("".join(f"{token}\n" for token in MORE))
    return folder


def settings(base: Path, save: Path, **model: object) -> ExperimentConfig:
    model = {"model_name_or_path": str(base / "hf"), "add_tokens": str(base / "tokens.txt"), **model}
    data = {"meta_path": str(base / "data" / "meta.json"), "max_seq_length": 400, "max_packed_tokens": 700}
    changes = {
        "model": {"converted_dir": str(base / "converted"), **model},
        "data": {**data, "max_dynamic_patch": 2, "num_images_expected": 20},
        "train": {"train_steps": STEPS, "device": "cpu", "precision": "fp32"},
        "v2pe": {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 4},
        "checkpoint": {"save": str(save)},
        "logging": {"tensorboard": False},
        "optimizer": {"lr": 1e-2},
    }
    return ExperimentConfig().updated(changes, "test")


def trained(config: ExperimentConfig, **train: object) -> Path:
    config = config.updated({"train": train}, "test")
    config.validate(1)
    run(config)
    folder = newest(Path(str(config.checkpoint.save)))
    assert folder is not None
    return folder


def told(folder: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (folder.parent / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


def exported(folder: Path, target: Path, layout: str) -> Path:
    mcore_to_hf(folder, target, layout=layout, dtype="fp32", side_files=side_files)
    return target


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    reader = vet_checkpoint(folder)
    return {key: reader.read(key, (0,) * len(one.size), one.size) for key, one in reader.tensors.items()}


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
