"""The settings of a training run: one frozen dataclass for each part, with a docstring under each field.

`ExperimentConfig.validate` checks each part, and the parts against one another, before anything is loaded.
What needs the world's or the model's size is checked once those are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from megatron_v2pe.base import config_tree
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range
from megatron_v2pe.models.presets import preset_named
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.adapter_settings import AdapterSettings
from megatron_v2pe.train.evaluation.settings import EvaluationConfig
from megatron_v2pe.train.health.settings import HealthConfig
from megatron_v2pe.train.optimizers.adamw import AdamWConfig
from megatron_v2pe.train.optimizers.parts import PARTS, check_parts
from megatron_v2pe.train.optimizers.settings import SCHEDULES, OptimizerSettings
from megatron_v2pe.train.validation.settings import ValidationConfig
from megatron_v2pe.v2pe.settings import V2PESettings

CONFIG_FILE = "config.yaml"
"""Name of the resolved configuration beside every training checkpoint."""
_Steps = Annotated[int, Range(1, 10**9)]
_Layer = Annotated[int, Range(-1001, 1001)]


@dataclass(frozen=True)
class ModelConfig:
    """The checkpoint to start from, and which of its parts learn."""

    model_name_or_path: str = ""
    """Folder of an InternVL checkpoint: the HF layout (converted once, cached) or a Megatron one."""
    preset: str | None = None
    """Published model, such as `InternVL3-8B`, whose shape a dry run takes where there is no checkpoint yet; where
    there is one, its own `config.json` counts. `tools/presets.py` lists them."""
    converted_dir: str | None = None
    """Where HF checkpoints are kept converted, for all tools; unset: $MEGATRON_V2PE_CONVERTED_DIR, or
    `work_dirs/converted`."""
    tokenizer_path: str | None = None
    """Folder of the tokenizer's files, which must give the ids of the checkpoint's own: exports carry that one."""
    spec: Literal["auto", "local", "te"] = "auto"
    """Layers: `local` for any device, `te` Transformer Engine's; `auto`: `te` where it can be used."""
    vision_select_layer: _Layer | None = None
    """`select_layer` the checkpoint must have, the hidden state projected (-1: the last); unset: not checked."""
    ps_version: Literal["v1", "v2"] | None = None
    """Pixel shuffle the checkpoint must have been trained with; unset: not checked."""
    down_sample_ratio: Annotated[float, Range(1 / 64, 1)] | None = None
    """`downsample_ratio` the checkpoint must have; unset: not checked."""
    drop_path_rate: Annotated[float, Range(0, 0.99)] | None = None
    """Stochastic depth of the vision tower, rising linearly to this rate; unset: the checkpoint's."""
    add_tokens: str | None = None
    """File of tokens to add to the tokenizer, one on each line, or a JSON list (`NAME.json`); embedding and head get a
    row for each, the mean of the rows of the pieces that it replaces. Checkpoints know them from then on."""
    train_new_tokens: bool = False
    """With a language model that is frozen, or has adapters: the rows of the tokens that this run adds, or else of
    those that were added to its checkpoint before, learn; the others do not."""
    freeze_llm: bool = False
    """Keep the language model as it is."""
    freeze_backbone: bool = False
    """Keep the vision tower as it is."""
    freeze_mlp: bool = False
    """Keep the projector between the two as it is."""
    unfreeze_vit_layers: _Layer = 0
    """With `freeze_backbone`: tower layers from this index on learn (negative: from the end); 0: none."""
    head_chunk_size: Annotated[int, Range(1, 1 << 24)] = 4096
    """Supervised tokens projected to the vocabulary at a time."""
    mlp_chunk_tokens: Annotated[int, Range(1, 1 << 24)] | None = 16384
    """Tokens (in the tower: of all tiles) an MLP works on at a time; less takes less memory; unset: all."""

    def validate(self, adapters: bool = False) -> None:
        """Check the values, and that some part learns.

        Args:
            adapters: whether adapters learn, whatever is frozen.

        Raises:
            ConfigError: names the setting.
        """
        config_tree.check_values(self, "model")
        if self.preset is not None:
            preset_named(self.preset)
        if not self.model_name_or_path and self.preset is None:
            raise ConfigError("model.model_name_or_path is empty: name the folder of an InternVL checkpoint")
        frozen = self.freeze_llm and self.freeze_backbone and self.freeze_mlp and not self.unfreeze_vit_layers
        if frozen and not self.train_new_tokens and not adapters:
            raise ConfigError("model.freeze_llm, freeze_backbone and freeze_mlp are all set: nothing would learn")
        if self.train_new_tokens and not self.freeze_llm and not adapters:
            raise ConfigError(
                "model.train_new_tokens is set without model.freeze_llm: all rows learn with the language model; leave "
                "it out"
            )
        if self.unfreeze_vit_layers and not self.freeze_backbone:
            raise ConfigError(f"model.unfreeze_vit_layers is {self.unfreeze_vit_layers} without model.freeze_backbone")


@dataclass(frozen=True)
class TrainConfig:
    """The loop: how long, how much per step, in which precision, what is recomputed."""

    train_steps: _Steps = 1000
    """Optimizer steps of the whole run; the learning rate decays over them."""
    epochs: Annotated[float, Range(1e-6, 10**6)] | None = None
    """Passes over the data, a fraction allowed, in place of `train_steps`: the steps are counted before the first one,
    of an indexed set or of a data list with up to 50,000 samples; a run that goes on counts what is left of them."""
    exit_step: _Steps | None = None
    """Save and stop after this step although the run is longer; it can be resumed."""
    gradient_accumulation_steps: Annotated[int, Range(1, 10**6)] | None = None
    """Packs (a micro-batch is one) per data parallel rank; unset: 1, or as `global_batch_size` says."""
    global_batch_size: Annotated[int, Range(1, 10**8)] | None = None
    """Packs per step over all ranks, data parallel size x accumulation; unset: whatever that gives."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Type of parameters and activations; master weights, moments, rotary angles and loss are always fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; `auto`: CUDA where there is a GPU."""
    recompute: Literal["auto", "full", "none", "stated"] = "stated"
    """Activations computed again in backward: `auto` keeps what fits `memory_share` of the card, attention first, and
    computes the rest again (on the CPU as `stated`); `full` keeps the least, `none` all; `stated`: as below."""
    memory_share: Annotated[float, Range(0.05, 1)] = 0.9
    """With `recompute auto`: share of the smallest card's memory that a step may be estimated to take."""
    recompute_granularity: Literal["full", "selective"] | None = "full"
    """Decoder activations computed again in backward: whole layers, attention only, or none (unset)."""
    recompute_method: Literal["uniform", "block"] | None = "uniform"
    """With `full`: units of equal size, or only the first layers of a stage."""
    recompute_num_layers: Annotated[int, Range(1, 1000)] | None = 1
    """With `full`: layers in a unit (`uniform`), or layers recomputed (`block`)."""
    recompute_attention: bool = True
    """With recompute: also attention, by far the largest part of a long sequence; off: its output is kept, one hidden
    state more per layer, and neither attention nor its ring runs a second time."""
    recompute_vision: bool = True
    """Compute the vision tower's activations again in backward, layer by layer."""
    seed: Annotated[int, Range(0, config_tree.LARGEST_INTEGER)] = 42
    """Seed of data order, strides, augmentation, drop path and new weights."""

    def validate(self) -> None:
        """Check ranges, and that no two settings exclude each other.

        Raises:
            ConfigError: names the settings.
        """
        config_tree.check_values(self, "train")
        if self.recompute_granularity == "full" and None in (
            self.recompute_method,
            self.recompute_num_layers,
        ):
            raise ConfigError(
                "train.recompute_granularity full needs recompute_method and recompute_num_layers, they are "
                f"{self.recompute_method} and {self.recompute_num_layers}"
            )
        if self.recompute != "stated":
            self._refuse_what_would_not_count()

    def _refuse_what_would_not_count(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name.startswith("recompute_") and value != one.default:
                raise ConfigError(
                    f"train.{one.name} is {value}, but train.recompute {self.recompute} decides what is recomputed; "
                    "set train.recompute stated to have it count"
                )

    def micro_batches(self, data_parallel_size: int) -> int:
        """Return the packs each data parallel rank works through per step.

        Raises:
            ConfigError: `global_batch_size` is not a multiple of the data parallel size, or disagrees with
                `gradient_accumulation_steps`.
        """
        total, steps = self.global_batch_size, self.gradient_accumulation_steps
        if total is None:
            return steps or 1
        if total % data_parallel_size:
            raise ConfigError(
                f"train.global_batch_size {total} is no multiple of data parallel size {data_parallel_size}; take "
                f"{-(-total // data_parallel_size) * data_parallel_size}, or another number of processes"
            )
        if steps is not None and steps * data_parallel_size != total:
            raise ConfigError(
                f"train.global_batch_size {total} is not data parallel size {data_parallel_size} x "
                f"gradient_accumulation_steps {steps} = {data_parallel_size * steps}; unset one of them"
            )
        return total // data_parallel_size


@dataclass(frozen=True)
class CheckpointConfig:
    """Where training state is written and found again."""

    save: str | None = None
    """Folder of the run: checkpoints `iter_*`, logs; unset: nothing is written."""
    load: str | None = None
    """Training checkpoint to go on from when `save` holds none: an `iter_*` folder, or a run's folder."""
    resume: Literal["auto", "never"] = "auto"
    """`auto`: go on from the newest checkpoint in `save`; `never`: refuse to start if there is one."""
    save_interval: _Steps | None = 2500
    """Steps between checkpoints; unset: only at the end, at `exit_step` and on SIGTERM."""
    keep_latest: Annotated[int, Range(1, 10**6)] | None = 5
    """Checkpoints kept, newest first; unset: all."""
    verify: bool = True
    """Compare what is read of a checkpoint with its checksums; off for one that was edited on purpose."""

    def validate(self) -> None:
        """Check ranges; an error names the setting."""
        config_tree.check_values(self, "checkpoint")


@dataclass(frozen=True)
class LoggingConfig:
    """What a run logs, how often, and where."""

    log_interval: _Steps = 1
    """Steps between lines on the console and rows of metrics."""
    dir: str | None = None
    """Folder of `metrics.jsonl` and the TensorBoard files; unset: `<checkpoint.save>/logs`, if any."""
    jsonl: bool = True
    """Write one JSON object per logged step."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb: bool = False
    """Send metrics to Weights & Biases as well (the `wandb` extra must be installed)."""
    page: bool = True
    """Write `run_record.json` and, at the end of the run, its page `run.html` and picture `run.png`."""
    page_interval: _Steps | None = None
    """Steps between two times that the page is written while the run goes on; unset: at its end."""
    writers: tuple[str, ...] = ()
    """Further writers of metrics by name, such as plug-ins add."""
    wandb_project: str = "megatron-v2pe"
    """Project the Weights & Biases run belongs to."""
    mlflow: bool = False
    """Send metrics to MLflow as well (the `mlflow` extra must be installed)."""
    mlflow_tracking_uri: str | None = None
    """Server or store that MLflow writes to; unset: $MLFLOW_TRACKING_URI, or MLflow's own default."""
    mlflow_experiment: str = "megatron-v2pe"
    """Experiment the MLflow run belongs to."""
    peak_tflops: Annotated[float, Range(1e-3, 1e6)] | None = None
    """Dense peak of a device in the run's precision, 10^12 operations a second, for the share of it that a run reaches
    (MFU); unset: that of the card by its name, none on the CPU."""

    def validate(self) -> None:
        """Check ranges; an error names the setting."""
        config_tree.check_values(self, "logging")


@dataclass(frozen=True)
class ExperimentConfig:
    """All settings of a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The checkpoint to start from and what of it learns."""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """Adapters of low rank on linears of the model."""
    v2pe: V2PESettings = field(default_factory=V2PESettings)
    """Positions of image tokens."""
    data: DataConfig = field(default_factory=DataConfig)
    """Annotations, images, packing."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Layout over processes."""
    optimizer: OptimizerSettings = field(default_factory=AdamWConfig)
    """The optimizer, by its name, and the learning rate."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and resuming."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Console, JSONL, TensorBoard."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """What a run watches of itself."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Loss of data that never train."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Benchmarks asked while training."""

    def validate(self, world_size: int | None = None) -> None:
        """Check all settings, and with the number of ranks also that the layout and the steps fit it.

        `cli.read_command` does so for every command. Whether the layout divides a model is asked of `parallel` once
        the model is known.

        Raises:
            ConfigError: naming the setting, and the two numbers where two disagree.
        """
        self.model.validate(self.adapter.is_on)
        self.v2pe.validate()
        self.data.validate()
        self.parallel.validate(world_size)
        self.optimizer.validate()
        self.train.validate()
        self.checkpoint.validate()
        self.logging.validate()
        self.health.validate()
        if self.health.profile_steps and not (self.logging.dir or self.checkpoint.save):
            raise ConfigError("health.profile_steps needs a folder for traces: set logging.dir or checkpoint.save")
        self.validation.validate(self.data, self.checkpoint.save)
        self.evaluation.validate(self.v2pe.rope_pos_id_version, self.checkpoint.save, self.model.spec)
        self.adapter.validate()
        self._validate_optimizer()
        self._validate_adapter()
        self._validate_padding()
        self._validate_offload()
        if self.parallel.use_distributed_optimizer and not self.optimizer.shards_state():
            raise ConfigError(
                f"optimizer.name is {self.optimizer.name}, whose state data-parallel ranks cannot share: set "
                "parallel.use_distributed_optimizer false"
            )
        if world_size is not None:
            self.train.micro_batches(self.parallel.data_parallel_size(world_size))

    def _validate_optimizer(self) -> None:
        """Check the schedule against the run's length, where that is known, and that parts with rates may learn."""
        if self.train.epochs is None:
            SCHEDULES.get(self.optimizer.lr_decay_style)(self.optimizer, self.train.train_steps)
        model = self.model
        frozen = {
            "vision": model.freeze_backbone and not model.unfreeze_vit_layers,
            "projector": model.freeze_mlp,
            "language": model.freeze_llm,
            "embedding": model.freeze_llm and not model.train_new_tokens,
            "adapter": not self.adapter.is_on,
        }
        check_parts(self.optimizer, (part for part in PARTS if not frozen[part]))

    def _validate_adapter(self) -> None:
        if not self.adapter.is_on:
            return
        if self.model.spec == "te":
            raise ConfigError("adapter.kind lora works on layers of model.spec local, which is te")

    def _validate_offload(self) -> None:
        precision_aware = self.optimizer.precision_aware_setting
        if not self.optimizer.keeps_state_on_host and precision_aware is None:
            return
        switch = f"optimizer.{precision_aware or self.optimizer.host_state_setting}"
        if self.train.precision != "bf16" or not self.parallel.use_distributed_optimizer:
            raise ConfigError(
                f"{switch} needs train.precision bf16 and parallel.use_distributed_optimizer, "
                f"they are {self.train.precision} and {self.parallel.use_distributed_optimizer}"
            )
        if self.train.device == "cpu":
            does = "needs" if precision_aware else "moves state off"
            raise ConfigError(f"{switch} {does} a GPU, but train.device is cpu")

    def _validate_padding(self) -> None:
        """Check that the longest document still fits a pack when it is padded for context parallelism."""
        from megatron_v2pe.parallel.zigzag import padding_multiples  # brings PyTorch, which takes seconds

        longest, room = self.data.max_seq_length, self.data.max_packed_tokens
        multiple, _ = padding_multiples(self.parallel.context_parallel_size, 1)
        counted = self.data.pack_padding_multiple
        if self.data.max_padding_share < 1 and counted % multiple:
            raise ConfigError(
                f"data.pack_padding_multiple {counted} is no multiple of {multiple}, to which this layout pads "
                "documents (twice context_parallel_size)"
            )
        padded = -(-longest // multiple) * multiple
        if padded > room:
            raise ConfigError(
                f"data.max_seq_length {longest} padded to a multiple of {multiple} (twice context_parallel_size) is "
                f"{padded}, above data.max_packed_tokens {room}; take {room // multiple * multiple} for max_seq_length"
            )

    def to_yaml(self) -> str:
        """Return every setting as YAML."""
        return config_tree.to_yaml(self)

    def save(self, path: str | Path) -> None:
        """Write every setting as YAML."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def updated(self, values: Mapping[str, Any], source: str) -> ExperimentConfig:
        """Return a copy with nested values replaced; an unknown key is an error naming the nearest known."""
        return config_tree.merge(self, values, source)

    def with_recorded_strides(self) -> ExperimentConfig:
        """Return the settings with the positions an indexed data set was built with, where the run asks for those.

        Raises:
            ConfigError: it asks for them without an indexed data set.
            DataError: the data set is damaged.
        """
        if self.v2pe.rope_pos_id_version != "recorded":
            return self
        if not self.data.indexed_path:
            raise ConfigError("v2pe.rope_pos_id_version recorded needs data.indexed_path, which records positions")
        from megatron_v2pe.data.indexed.layout import Manifest  # brings NumPy; few runs ask for it

        recorded = Manifest.read(Path(self.data.indexed_path)).v2pe
        settled = self.updated({"v2pe": recorded}, self.data.indexed_path)
        settled.v2pe.validate()
        return settled

    def with_template(self, name: str) -> ExperimentConfig:
        """Return the settings with the conversation template of a checkpoint, where the run names none."""
        return self if self.data.template else replace(self, data=replace(self.data, template=name))

    @classmethod
    def load(cls, path: str | Path) -> ExperimentConfig:
        """Read a YAML file; settings it does not name keep their defaults."""
        return cls().updated(config_tree.read_yaml(path), str(path))
