"""The flags of the published V2PE training scripts, a row each: what becomes of a flag, and how its value is read.

A row says which setting of ours a flag stands for, or `ignored` with the reason, or `refused` where going on would
train something else than was asked for. `published_flags` reads the table; `docs/flags.md` shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

from megatron_v2pe.base.whole_numbers import is_whole_number
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.train.config import TrainConfig
from megatron_v2pe.train.published_optimizer import custom_trainer, schedule, schedule_arguments, warmup_steps

Settings = dict[str, Any]
"""Dotted path of a setting -> value."""


@dataclass(frozen=True)
class PublishedFlag:
    """One flag of the published scripts."""

    name: str
    default: str
    """Published default; `-` for none."""
    group: str
    kind: str
    """`mapped`, `ignored` or `refused`."""
    key: str = ""
    """Our setting, or settings, where there is one."""
    note: str = ""
    """How the value is converted, why the flag is ignored, or why it is refused."""
    convert: Callable[[str], Settings] | None = None
    neutral: tuple[str, ...] = ()
    """Values of a refused flag that ask for nothing and are let through, in lower case."""
    done: tuple[str, ...] | None = None
    """Values of an ignored flag that ask for what is done anyway, in lower case; None: no value changes a run."""
    boolean: bool = False
    """Whether the flag may stand alone, meaning True."""

    def settings(self, value: str) -> Settings:
        """Return our settings for a value of this flag.

        Raises:
            ConfigError: the flag is refused with this value, or the value has no counterpart.
        """
        if self.kind == "refused" and value.lower() not in self.neutral:
            raise ConfigError(f"--{self.name} {shown_value(value)} is refused: {self.note}")
        if self.kind != "mapped":
            return {}
        return self.convert(value) if self.convert else {self.key: value}

    def not_done(self, value: str) -> bool:
        """Tell whether this value of an ignored flag asks for something else than what is done."""
        return self.kind == "ignored" and self.done is not None and value.strip().lower() not in self.done


EPOCHS = "3.0"
"""Epochs of a published run whose flags name neither steps nor epochs."""


def is_true(value: str, name: str) -> bool:
    """Read a truth value the way the published scripts' parser does."""
    if value.lower() in ("true", "t", "1", "yes", "y"):
        return True
    if value.lower() in ("false", "f", "0", "no", "n"):
        return False
    raise ConfigError(f"--{name} {shown_value(value)}: expected True or False")


def shown_value(value: str) -> str:
    """Return a value as a message shows it: its first 100 characters, none a control character."""
    return printable(value[:100])


def _grad_checkpoint(value: str) -> Settings:
    """Read whether activations are recomputed; what a recipe states of that in detail counts no longer."""
    stated = {f"train.{one.name}": one.default for one in fields(TrainConfig) if one.name.startswith("recompute_")}
    return {**stated, "train.recompute": "auto" if is_true(value, "grad_checkpoint") else "none"}


def _lora(part: str) -> Callable[[str], Settings]:
    """Return how the rank of adapters on a part is read: alpha is twice the rank, dropout 0.05, all linears."""

    def convert(value: str) -> Settings:
        if value.strip().lower() in ("0", *_NO):
            return {}
        return {"adapter.kind": "lora", f"adapter.{part}_rank": value, "adapter.dropout": 0.05}

    return convert


def _bf16(value: str) -> Settings:
    return {"train.precision": "bf16" if is_true(value, "bf16") else "fp32"}


def _attn_type(value: str) -> Settings:
    kinds = {"ring": "p2p", "ulysses": "a2a"}
    if value.lower() not in (*kinds, "packed", "none", ""):
        raise ConfigError(f"--attn_type {shown_value(value)} is none of ring, ulysses, packed")
    return {"parallel.cp_comm_type": kinds[value.lower()]} if value.lower() in kinds else {}


def _accumulation(value: str) -> Settings:
    return {"train.gradient_accumulation_steps": value, "train.global_batch_size": None}


def _save_strategy(value: str) -> Settings:
    if value == "no":
        return {"checkpoint.save_interval": None}
    if value == "steps":
        return {}
    raise ConfigError(f"--save_strategy {shown_value(value)} is refused: use steps (with --save_steps) or no")


def _custom_trainer(value: str) -> Settings:
    return custom_trainer(is_true(value, "use_custom_trainer"))


def _keep(value: str) -> Settings:
    """Read how many checkpoints are kept; 0 and numbers below it mean all."""
    number = value.removeprefix("-")
    is_whole = is_whole_number(number)
    every = value.lower() in ("", "none") or (is_whole and (number != value or not number.strip("0")))
    return {"checkpoint.keep_latest": None if every else value}


def _resume(value: str) -> Settings:
    """Read where a run goes on; a truth value means the newest checkpoint in the run's folder, which is looked for."""
    return {"checkpoint.load": None if value.lower() in ("", "none", "true", "false") else value}


def _report_to(value: str) -> Settings:
    servers = ("wandb", "mlflow")
    every = {"tensorboard", *(name for name in servers if find_spec(name))}
    names = every if value == "all" else set(value.replace(",", " ").split()) - {"none"}
    unknown = names - {"tensorboard", *servers}
    if unknown:
        raise ConfigError(
            f"--report_to {shown_value(' '.join(sorted(unknown)))} is refused: known are tensorboard, wandb, mlflow"
        )
    return {f"logging.{name}": name in names for name in ("tensorboard", *servers)}


def _nothing(value: str) -> Settings:
    """Leave a flag to `_length`, which sees both."""
    return {}


def _optional(key: str) -> Callable[[str], Settings]:
    return lambda value: {key: None if value in ("", "None", "none") else value}


def _boolean(key: str, name: str) -> Callable[[str], Settings]:
    return lambda value: {key: is_true(value, name)}


class _Group:
    """Writes the rows of one group of flags."""

    def __init__(self, name: str) -> None:
        self.name = name

    def mapped(
        self,
        name: str,
        default: str,
        key: str,
        convert: Callable[[str], Settings] | None = None,
        note: str = "",
    ) -> PublishedFlag:
        boolean = default in ("True", "False")
        if convert is None:
            convert = _boolean(key, name) if boolean else _optional(key) if default == "-" else None
        return PublishedFlag(name, default, self.name, "mapped", key, note, convert, boolean=boolean)

    def ignored(self, name: str, default: str, reason: str, done: tuple[str, ...] | None = None) -> PublishedFlag:
        boolean = default in ("True", "False")
        return PublishedFlag(name, default, self.name, "ignored", note=reason, done=done, boolean=boolean)

    def refused(self, name: str, default: str, reason: str, neutral: tuple[str, ...]) -> PublishedFlag:
        boolean = default in ("True", "False")
        return PublishedFlag(name, default, self.name, "refused", note=reason, neutral=neutral, boolean=boolean)


_NO = ("false", "f", "no", "0")
_YES = ("true", "t", "yes", "1")
_NONE = ("none", "")

_model = _Group("model")
_v2pe = _Group("V2PE")
_context = _Group("context parallel")
_abandoned = _Group("abandoned experiments")
_data = _Group("data")
_packing = _Group("packing")
_trainer = _Group("trainer")

_LORA = (
    "0: none; else `adapter.kind lora`, alpha twice the rank, dropout 0.05, on attention and MLP; the part itself is "
    "frozen"
)
_WHOLE = "runs start from a whole InternVL checkpoint: give --model_name_or_path"
_NO_EFFECT = "without effect in the published recipe"

ROWS: tuple[PublishedFlag, ...] = (
    _model.mapped("model_name_or_path", "-", "model.model_name_or_path"),
    _model.refused("vision_path", "-", _WHOLE, _NONE),
    _model.refused("llm_path", "-", _WHOLE, _NONE),
    _model.refused("mlp_path", "-", _WHOLE, _NONE),
    _model.mapped("tokenizer_path", "-", "model.tokenizer_path"),
    _model.mapped("freeze_llm", "False", "model.freeze_llm"),
    _model.mapped("freeze_backbone", "False", "model.freeze_backbone"),
    _model.mapped("freeze_mlp", "False", "model.freeze_mlp"),
    _model.mapped("unfreeze_vit_layers", "0", "model.unfreeze_vit_layers"),
    _model.refused(
        "unfreeze_lm_head",
        "False",
        "the head learns unless freeze_llm is set; it has no switch of its own",
        _NO,
    ),
    _model.mapped("vision_select_layer", "-1", "model.vision_select_layer", note="must equal the checkpoint's"),
    _model.mapped("use_backbone_lora", "0", "adapter.backbone_rank", _lora("backbone"), _LORA),
    _model.mapped("use_llm_lora", "0", "adapter.llm_rank", _lora("llm"), _LORA),
    _model.mapped(
        "use_custom_trainer",
        "False",
        "optimizer.weight_decay_on_all, optimizer.vision_lr_decay",
        _custom_trainer,
        "True: `false`, and the rate in `$VIT_LAYER_DECAY_RATE`",
    ),
    _model.mapped(
        "grad_checkpoint",
        "False",
        "train.recompute",
        _grad_checkpoint,
        "True: `auto`, what does not fit; False: `none`",
    ),
    _model.mapped("drop_path_rate", "0.0", "model.drop_path_rate"),
    _model.mapped("ps_version", "v1", "model.ps_version", note="must equal the checkpoint's"),
    _model.refused(
        "img_emb_down_sample_ratio", "-", "the published code cannot run it either (a missing import)", _NONE
    ),
    _v2pe.mapped("rope_pos_id_version", "default", "v2pe.rope_pos_id_version"),
    _v2pe.mapped("rope_pos_id_stride", "-", "v2pe.rope_pos_id_stride"),
    _context.mapped("chunk_num", "1", "parallel.context_parallel_size"),
    _context.mapped(
        "attn_type",
        "-",
        "parallel.cp_comm_type",
        _attn_type,
        "`ring` is `p2p`, `ulysses` is `a2a`; with `packed` `chunk_num` must be 1",
    ),
    _abandoned.refused("compress_seq", "False", "an abandoned experiment", _NO),
    _abandoned.ignored("interaction", "True", _NO_EFFECT),
    _abandoned.ignored("fuse_method", "add", _NO_EFFECT),
    _abandoned.ignored("compress_method", "avg", _NO_EFFECT),
    _abandoned.ignored("final_size", "100", _NO_EFFECT),
    _abandoned.ignored("scale", "25.0", _NO_EFFECT),
    _abandoned.ignored("neftune_alpha", "-", "without effect in the published code"),
    _data.mapped("meta_path", "-", "data.meta_path"),
    _data.mapped("conv_style", "internvl_zh", "data.template", note="`internlm2-chat`"),
    _data.mapped("max_seq_length", "2048", "data.max_seq_length"),
    _data.mapped("force_image_size", "224", "data.force_image_size"),
    _data.mapped("down_sample_ratio", "1.0", "model.down_sample_ratio", note="must equal the checkpoint's"),
    _data.mapped("pad2square", "False", "data.pad2square"),
    _data.mapped("dynamic_image_size", "False", "data.dynamic_image_size"),
    _data.mapped("dynamic_max_patch", "False", "data.dynamic_max_patch"),
    _data.mapped("use_thumbnail", "False", "data.use_thumbnail"),
    _data.mapped("min_dynamic_patch", "1", "data.min_dynamic_patch"),
    _data.mapped("max_dynamic_patch", "12", "data.max_dynamic_patch"),
    _data.mapped("min_num_frame", "4", "data.min_num_frame"),
    _data.mapped("max_num_frame", "20", "data.max_num_frame"),
    _data.mapped("normalize_type", "imagenet", "data.normalize_type"),
    _data.mapped("use_data_resampling", "False", "data.use_data_resampling"),
    _packing.refused("use_packed_ds", "False", "samples are always packed", _YES),
    _packing.mapped("num_images_expected", "12", "data.num_images_expected"),
    _packing.mapped("max_packed_tokens", "8192", "data.max_packed_tokens"),
    _packing.mapped("max_buffer_size", "20", "data.max_buffer_size"),
    _packing.ignored("log_freq", "1000", "skipped samples go to the log as they occur"),
    _packing.refused("strict_mode", "True", "packs are not padded with empty tiles", _NO),
    _packing.ignored("replacement", "False", "a dataset starts again once all of an epoch was read", _NO),
    _packing.refused("allow_overflow", "False", "documents are never cut", _NO),
    _packing.mapped("loss_reduction", "token", "data.loss_reduction"),
    _packing.ignored(
        "loss_reduction_all_gather", "False", "weights are always summed over all ranks and micro-batches", _YES
    ),
    _trainer.mapped("output_dir", "-", "checkpoint.save"),
    _trainer.ignored(
        "overwrite_output_dir",
        "False",
        "a run goes on from the newest checkpoint in its folder; to start anew name another folder",
        _NO,
    ),
    _trainer.ignored("do_train", "False", "this command trains", _YES),
    _trainer.mapped("bf16", "False", "train.precision", _bf16, "True: `bf16`; False: `fp32`"),
    _trainer.mapped(
        "num_train_epochs", EPOCHS, "train.epochs", _nothing, "where `--max_steps` gives no number of steps"
    ),
    _trainer.mapped("max_steps", "-1", "train.train_steps", _nothing, "0 or less: `--num_train_epochs` counts"),
    _trainer.refused(
        "per_device_train_batch_size",
        "8",
        "a micro-batch is one pack: raise max_packed_tokens or gradient_accumulation_steps",
        ("1",),
    ),
    _trainer.mapped(
        "gradient_accumulation_steps",
        "1",
        "train.gradient_accumulation_steps",
        _accumulation,
        "unsets `train.global_batch_size`",
    ),
    _trainer.mapped(
        "save_strategy",
        "steps",
        "checkpoint.save_interval",
        _save_strategy,
        "`steps`, or `no` for only at the end",
    ),
    _trainer.mapped("save_steps", "500", "checkpoint.save_interval"),
    _trainer.mapped("save_total_limit", "-", "checkpoint.keep_latest", _keep, "0 or less: all"),
    _trainer.mapped("learning_rate", "5e-5", "optimizer.lr"),
    _trainer.mapped("weight_decay", "0.0", "optimizer.weight_decay"),
    _trainer.mapped("warmup_ratio", "0.0", "optimizer.warmup_ratio"),
    _trainer.mapped("warmup_steps", "0", "optimizer.warmup_steps", warmup_steps, "0: `--warmup_ratio` counts"),
    _trainer.mapped(
        "lr_scheduler_type",
        "linear",
        "optimizer.lr_decay_style",
        schedule,
        "`cosine`, `linear`, `constant` (no warm-up), `constant_with_warmup`, `warmup_stable_decay`, `inverse_sqrt`",
    ),
    _trainer.mapped(
        "lr_scheduler_kwargs",
        "-",
        "optimizer.wsd_decay_steps, optimizer.wsd_decay_style",
        schedule_arguments,
        "JSON; of `warmup_stable_decay`: `num_decay_steps`, `decay_type`",
    ),
    _trainer.mapped("logging_steps", "500", "logging.log_interval"),
    _trainer.ignored("group_by_length", "False", "samples are packed by best fit instead", _NO),
    _trainer.mapped("dataloader_num_workers", "0", "data.num_workers"),
    _trainer.ignored("remove_unused_columns", "True", "samples have no unused columns"),
    _trainer.ignored(
        "deepspeed",
        "-",
        "the file is not read; state is sharded by parallel.use_distributed_optimizer, a model by its parallel sizes",
        _NONE,
    ),
    _trainer.mapped(
        "report_to",
        "all",
        "logging.tensorboard, logging.wandb, logging.mlflow",
        _report_to,
        "`tensorboard`, `wandb`, `mlflow`, `none`, `all` that is installed",
    ),
    _trainer.mapped(
        "resume_from_checkpoint", "-", "checkpoint.load", _resume, "`True`: the newest in the run's folder, as always"
    ),
    _trainer.mapped("seed", "42", "train.seed"),
    _trainer.mapped("adam_beta1", "0.9", "optimizer.adam_beta1"),
    _trainer.mapped("adam_beta2", "0.999", "optimizer.adam_beta2"),
    _trainer.mapped("adam_epsilon", "1e-8", "optimizer.adam_eps"),
    _trainer.mapped("max_grad_norm", "1.0", "optimizer.clip_grad"),
)
