"""What every setting of a run may be, written down a second time by hand: the fuzz tests compare the two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

INFINITE = math.inf


@dataclass(frozen=True)
class Row:
    """What one setting may be."""

    kind: str
    """`flag`, `whole`, `wholes`, `number`, `text`, `choice`, `stride` or `strides`."""
    least: float = -INFINITE
    most: float = INFINITE
    optional: bool = False
    choices: tuple[str, ...] = ()


def _rows(kind: str, names: str, least: float = 0, most: float = 0, optional: bool = False) -> dict[str, Row]:
    return {name: Row(kind, least, most, optional) for name in names.split()}


def _choice(name: str, words: str, optional: bool = False) -> dict[str, Row]:
    return {name: Row("choice", optional=optional, choices=tuple(words.split()))}


_PARTS = ("vision", "projector", "language", "embedding", "adapter")
SETTINGS: dict[str, Row] = {
    **_rows(
        "flag",
        "model.freeze_llm model.freeze_backbone model.freeze_mlp data.pad2square data.dynamic_image_size "
        "data.dynamic_max_patch data.use_thumbnail data.use_data_resampling data.balance_attention "
        "parallel.sequence_parallel parallel.use_distributed_optimizer parallel.overlap_grad_reduce "
        "parallel.overlap_param_gather optimizer.weight_decay_on_all train.recompute_attention train.recompute_vision "
        "logging.jsonl logging.tensorboard logging.wandb logging.mlflow logging.page "
        "checkpoint.verify optimizer.optimizer_cpu_offload optimizer.use_precision_aware_optimizer "
        "validation.at_start validation.greater_is_better validation.allow_overlap validation.only "
        "evaluation.at_end adapter.use_rslora model.train_new_tokens",
    ),
    **_rows("whole", "data.max_seq_length data.max_packed_tokens model.head_chunk_size", 1, 16_777_216),
    **_rows("whole", "model.mlp_chunk_tokens", 1, 16_777_216, True),
    **_rows("whole", "data.min_dynamic_patch data.max_dynamic_patch", 1, 1000),
    **_rows("whole", "data.min_num_frame data.max_num_frame", 1, 100_000),
    **_rows("whole", "data.num_images_expected data.max_buffer_size", 1, 1_000_000),
    **_rows("whole", "data.pack_padding_multiple", 1, 1_048_576),
    **_rows("whole", "data.num_workers", 0, 1024),
    **_rows("whole", "data.max_skipped_samples", 0, 10**12),
    **_rows("whole", "data.force_image_size", 1, 16_384, True),
    **_rows("whole", "data.packing_window parallel.ddp_bucket_size", 1, 10**12, True),
    **_rows(
        "whole",
        "parallel.tensor_model_parallel_size parallel.pipeline_model_parallel_size parallel.context_parallel_size",
        1,
        65_536,
    ),
    **_rows(
        "whole",
        "parallel.num_layers_in_first_pipeline_stage parallel.num_layers_in_last_pipeline_stage "
        "train.recompute_num_layers",
        1,
        1000,
        True,
    ),
    **_rows("whole", "model.vision_select_layer", -1001, 1001, True),
    **_rows("whole", "model.unfreeze_vit_layers", -1001, 1001),
    **_rows("whole", "train.train_steps logging.log_interval", 1, 10**9),
    **_rows("whole", "train.exit_step checkpoint.save_interval logging.page_interval", 1, 10**9, True),
    **_rows("whole", "train.gradient_accumulation_steps checkpoint.keep_latest", 1, 10**6, True),
    **_rows("whole", "train.global_batch_size", 1, 10**8, True),
    **_rows("whole", "train.seed validation.seed evaluation.seed", 0, 2**63 - 1),
    **_rows("whole", "validation.interval", 1, 10**9, True),
    **_rows("whole", "validation.max_samples", 1, 10**12, True),
    **_rows("whole", "validation.max_packed_tokens", 1, 16_777_216, True),
    **_rows("whole", "validation.num_images_expected", 1, 1_000_000, True),
    **_rows("whole", "validation.keep_best", 0, 10**6),
    **_rows("number", "validation.share", 0, 0.9),
    **_rows("whole", "adapter.rank", 1, 65_536),
    **_rows("whole", "adapter.llm_rank adapter.backbone_rank adapter.projector_rank", 1, 65_536, True),
    **_rows("number", "adapter.alpha", 1e-6, 1e6, True),
    **_rows("number", "adapter.dropout", 0, 0.99),
    **_choice("adapter.kind", "none lora"),
    **_choice("adapter.pieces", "auto fused split"),
    **_rows("whole", "health.interval health.attention_interval health.divergence_interval", 1, 10**9, True),
    **_rows("whole", "health.max_skipped_steps health.max_skipped_in_a_row", 0, 10**6),
    **_rows("whole", "health.window", 2, 10**5),
    **_rows("number", "health.spike_factor", 1, 10**6, True),
    **_choice("health.divergence", "stop warn"),
    **_rows("text", "health.profile_steps"),
    **_rows("wholes", "health.profile_ranks", 0, INFINITE),
    **_rows("text", "validation.meta_path validation.indexed_path validation.best_by"),
    **_rows("whole", "evaluation.interval evaluation.samples", 1, 10**9, True),
    **_rows("whole", "evaluation.batch_size", 1, 10**6),
    **_rows("whole", "evaluation.max_num", 1, 1000, True),
    **_rows("whole", "evaluation.window", 1, 10**12, True),
    **_rows("whole", "evaluation.image_workers", 0, 1024, True),
    **_rows("whole", "evaluation.prefill_tokens", 1, 1 << 30),
    **_rows("whole", "evaluation.vision_cache_mb", 0, 1 << 20),
    **_rows("number", "evaluation.minutes", 1e-4, 10**6, True),
    **_rows("number", "data.max_padding_share optimizer.warmup_ratio", 0, 1),
    **_rows("number", "train.memory_share", 0.05, 1),
    **_rows("number", "train.epochs", 1e-6, 10**6, True),
    **_rows("number", "logging.peak_tflops", 1e-3, 10**6, True),
    **_rows("number", "optimizer.adam_beta1 optimizer.adam_beta2", 0, 0.9999999999),
    **_rows("number", "optimizer.lr", 1e-30, 10),
    **_choice("optimizer.main_params_dtype", "fp32 fp16"),
    **_choice("optimizer.exp_avg_dtype", "fp32 bf16 fp16 fp8"),
    **_choice("optimizer.exp_avg_sq_dtype", "fp32 bf16 fp16 fp8"),
    **_rows("whole", "optimizer.warmup_steps", 0, 10**9, True),
    **_rows("number", "optimizer.ema_decay", 0, 1, True),
    **_rows("whole", "optimizer.wsd_decay_steps", 1, 10**9, True),
    **_rows("number", "optimizer.wsd_decay_ratio", 0, 1, True),
    **_choice("optimizer.wsd_decay_style", "cosine linear minus_sqrt exponential"),
    **_rows("number", " ".join(f"optimizer.{part}_lr" for part in _PARTS), 1e-30, 10, True),
    **_rows("number", " ".join(f"optimizer.{part}_weight_decay" for part in _PARTS), 0, 100, True),
    **_rows("number", "optimizer.vision_lr_decay", 1e-6, 1, True),
    **_rows("number", "optimizer.adapter_b_lr_ratio", 1e-6, 1e6, True),
    **_rows("number", "optimizer.min_lr", 0, 10),
    **_rows("number", "optimizer.weight_decay", 0, 100),
    **_rows("number", "optimizer.adam_eps", 1e-30, 1),
    **_rows("number", "optimizer.clip_grad", 0, 10**6),
    **_rows("number", "parallel.distributed_timeout_minutes", 0.001, 525_600),
    **_rows("number", "model.down_sample_ratio", 1 / 64, 1, True),
    **_rows("number", "model.drop_path_rate", 0, 0.99, True),
    **_rows("text", "model.model_name_or_path data.meta_path data.indexed_path logging.wandb_project evaluation.root"),
    **_rows("text", "logging.mlflow_experiment"),
    **_rows("text", "logging.mlflow_tracking_uri", optional=True),
    **_rows(
        "text",
        "data.template model.converted_dir model.tokenizer_path checkpoint.save checkpoint.load logging.dir "
        "adapter.start model.add_tokens",
        optional=True,
    ),
    **_choice("model.spec", "auto local te"),
    **_choice(
        "model.preset",
        "InternVL2-1B InternVL2-2B InternVL2-4B InternVL2-8B InternVL2-26B InternVL2-40B InternVL2-76B InternVL2_5-1B "
        "InternVL2_5-2B InternVL2_5-4B InternVL2_5-8B InternVL2_5-26B InternVL2_5-38B InternVL2_5-78B InternVL3-1B "
        "InternVL3-2B InternVL3-8B InternVL3-9B InternVL3-14B InternVL3-38B InternVL3-78B InternVL3_5-1B "
        "InternVL3_5-2B InternVL3_5-4B InternVL3_5-8B InternVL3_5-14B InternVL3_5-38B",
        True,
    ),
    **_choice("model.ps_version", "v1 v2", True),
    **_choice("v2pe.rope_pos_id_version", "default v2pe_fix v2pe_rnd recorded"),
    **_choice("data.normalize_type", "imagenet clip siglip"),
    **_choice("data.loss_reduction", "token sample square"),
    **_choice("parallel.cp_comm_type", "p2p a2a"),
    **_choice("parallel.attention_backend", "auto cudnn flash flash_attn reference"),
    **_choice("parallel.vision_parallel", "tensor replicated"),
    **_choice("optimizer.name", "adamw muon"),
    **_choice("optimizer.lr_decay_style", "cosine linear constant wsd inverse-square-root"),
    **_choice("train.precision", "bf16 fp32"),
    **_choice("train.device", "auto cpu cuda"),
    **_choice("train.recompute", "auto full none stated"),
    **_choice("train.recompute_granularity", "full selective", True),
    **_choice("train.recompute_method", "uniform block", True),
    **_choice("evaluation.mode", "corrected reference"),
    **_choice("checkpoint.resume", "auto never"),
    "v2pe.rope_pos_id_stride": Row("stride", optional=True),
    "v2pe.strides": Row("strides"),
    "logging.writers": Row("strides"),
    "evaluation.benchmarks": Row("strides"),
    "evaluation.strides": Row("strides"),
    "adapter.targets": Row("strides"),
}

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 64, 1000, 10**6, 10**9, 10**12, 2**31, 2**53 + 1, 2**63, 2**64,
    -(2**63), 10**300,
    10**399, 0.0, -0.0, 0.5, 1.5, -0.5, 1.0, 1e-8, 1e-320, 1e308, 64.0, "", " ", "5", "-5", "0.5",
    "1e5", "1e-5", "1e999",
    "nan", "inf", "-inf", "Infinity", "9" * 30, "9" * 5000, "true", "True", "false", "none", "None",
    "null", "yes", "x",
    "a b", "bf16", "full", "v2pe_fix", "auto", "1/2", "1,2", "é", "\u0661\u0662", "1_000", "0x10",
    "<image>", "\x1b[31m",
    "\x00", "a\nb", "\u202eabc", "x" * 5000, "~", "/dev/zero", [], [1], ["a"], [[1]], [None], [[[[]]]],
    {}, {"a": 1},
    {"a": {"b": [1]}}, [1, "1/2"], ["1", "2"],
)  # fmt: skip
"""Values of every type, most of them wrong for most settings."""


def is_text(value: Any) -> bool:
    """Tell whether a value is text a setting may hold."""
    return isinstance(value, str) and len(value) <= 4096 and all(c.isprintable() or c == " " for c in value)


def verdict(row: Row, value: Any) -> bool | None:
    """Tell whether a setting may have a value: True, False, or None where it depends on how the value is written."""
    if row.kind == "choice" and isinstance(value, str) and value in row.choices:  # "none" may be one
        return True
    if row.kind in ("strides", "wholes") and isinstance(value, str):  # "none" is an empty list where that may be one
        return None
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null") and row.kind != "text"):
        return row.optional
    if row.kind == "flag":
        return isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false"))
    if isinstance(value, (bool, dict)):
        return False
    if row.kind in ("whole", "number"):
        return _number_verdict(row, value)
    if row.kind == "choice":
        return False
    if row.kind == "text":
        return None if row.optional and value in ("none", "None", "null") else is_text(value)
    if row.kind == "stride":
        return None if isinstance(value, (str, int, float)) else False
    return None if isinstance(value, (str, list)) else False


def _number_verdict(row: Row, value: Any) -> bool | None:
    if isinstance(value, str):
        if not value.isascii() or "_" in value or len(value) > 400 or not any(c.isdigit() for c in value):
            return False
        try:
            value = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        except ValueError:
            return False
    if isinstance(value, list):
        return False
    if isinstance(value, float) and (not math.isfinite(value) or (row.kind == "whole" and value != int(value))):
        return False
    if row.kind == "number" and abs(value) > 10**300:
        return False
    return row.least <= value <= row.most


def problem(row: Row, value: Any) -> str | None:
    """Say what is wrong with the value a setting has in the end, None where nothing is."""
    if value is None:
        return None if row.optional else "None"
    kinds: dict[str, tuple[type, ...]] = {
        "flag": (bool,),
        "whole": (int,),
        "wholes": (tuple,),
        "number": (float, int),
        "strides": (tuple,),
    }
    if not isinstance(value, kinds.get(row.kind, (str,))) or (isinstance(value, bool) != (row.kind == "flag")):
        return f"a {type(value).__name__} for {row.kind}"
    if row.kind in ("whole", "number") and not row.least <= value <= row.most:
        return f"{value} outside {row.least} to {row.most}"
    if row.kind == "wholes" and (wrong := [one for one in value if type(one) is not int or one < row.least]):
        return f"{wrong[0]!r} is no number from {row.least} on"
    if row.kind == "choice" and value not in row.choices:
        return f"{value!r} is none of {row.choices}"
    texts = value if row.kind == "strides" else (value,) if isinstance(value, str) else ()
    return next((f"text {text[:40]!r}" for text in texts if not is_text(text)), None)
