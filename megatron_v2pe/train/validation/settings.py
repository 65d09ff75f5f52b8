"""The settings of validation: which data, when, how much of them, and how many of the best checkpoints are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from megatron_v2pe.base.config_tree import LARGEST_INTEGER, check_values
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.hold_out import HoldOut
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range

LOSS = "validation/loss"
"""Name of the loss over all validation data, in the rows of metrics."""


@dataclass(frozen=True)
class ValidationConfig:
    """Data that never train, and when their loss is computed; without data nothing is validated."""

    meta_path: str = ""
    """Data list to validate on, in the format of `data.meta_path`."""
    indexed_path: str = ""
    """Indexed data set to validate on, where the run trains on one (`data.indexed_path`)."""
    share: Annotated[float, Range(0, 0.9)] = 0.0
    """Share of every training set that is held out, never trained, and validated on; 0: none."""
    seed: Annotated[int, Range(0, LARGEST_INTEGER)] = 1234
    """Seed of which samples are held out or chosen, and of their strides; other than `train.seed`, so that runs with
    different orders have the same validation data."""
    interval: Annotated[int, Range(1, 10**9)] | None = 500
    """Steps between validations; unset: only after the last step."""
    at_start: bool = False
    """Validate before the first step too."""
    max_samples: Annotated[int, Range(1, 10**12)] | None = 1000
    """Most samples of each data set that are validated on, chosen by `seed`; unset: all."""
    max_packed_tokens: Annotated[int, Range(1, 1 << 24)] | None = None
    """Most tokens in a pack of validation; unset: `data.max_packed_tokens`."""
    num_images_expected: Annotated[int, Range(1, 1_000_000)] | None = None
    """Most tiles in a pack of validation; unset: `data.num_images_expected`."""
    keep_best: Annotated[int, Range(0, 10**6)] = 0
    """Checkpoints kept beside the newest ones because they are the best by `best_by`; 0: none. A validation among the
    best is followed by a checkpoint."""
    best_by: str = LOSS
    """Value by which checkpoints are compared: `validation/loss`, or `validation/loss/<data set>`."""
    greater_is_better: bool = False
    """Whether the largest values of `best_by` are the best."""
    allow_overlap: bool = False
    """Go on although samples of validation are trained on."""
    only: bool = False
    """Train nothing: compute the validation loss of the checkpoint that the run starts or goes on from, and end."""

    @property
    def is_on(self) -> bool:
        """Whether there are data to validate on."""
        return bool(self.meta_path or self.indexed_path or self.share)

    @property
    def hold_out(self) -> HoldOut | None:
        """Return which samples of the training data never train; None: all of them do."""
        return HoldOut(self.share, self.seed) if self.share else None

    def data(self, training: DataConfig) -> DataConfig:
        """Return the settings by which validation data are read: those of training, with the paths and budgets here."""
        return replace(
            training,
            meta_path=training.meta_path if self.share else self.meta_path,
            indexed_path=training.indexed_path if self.share else self.indexed_path,
            max_packed_tokens=self.max_packed_tokens or training.max_packed_tokens,
            num_images_expected=self.num_images_expected or training.num_images_expected,
        )

    def validate(self, training: DataConfig, save: str | None) -> None:
        """Check the values, and against the training data and the run's folder.

        Args:
            training: settings of the training data.
            save: `checkpoint.save`.

        Raises:
            ConfigError: names the settings.
        """
        check_values(self, "validation")
        given = [name for name in ("meta_path", "indexed_path", "share") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(f"validation.{given[0]} and validation.{given[1]} are both set; set one of them")
        if self.indexed_path and not training.indexed_path:
            raise ConfigError(
                "validation.indexed_path is set, but the run trains on a data list: give the data list of the "
                "validation data as validation.meta_path"
            )
        if not given:
            self._refuse_without_data()
            return
        if self.max_packed_tokens is not None and self.max_packed_tokens < training.max_seq_length:
            raise ConfigError(
                f"validation.max_packed_tokens {self.max_packed_tokens} is below data.max_seq_length "
                f"{training.max_seq_length}: the longest document would not fit a pack"
            )
        if self.best_by != LOSS and not self.best_by.startswith(f"{LOSS}/"):
            raise ConfigError(f"validation.best_by is {self.best_by!r}, expected {LOSS} or {LOSS}/<data set>")
        if self.keep_best and save is None:
            raise ConfigError(
                f"validation.keep_best is {self.keep_best}, but nothing is saved: set checkpoint.save to a folder"
            )

    def _refuse_without_data(self) -> None:
        """Refuse settings that ask for a validation where there are no data for it."""
        asking = [name for name in ("keep_best", "only", "at_start") if getattr(self, name)]
        if asking:
            raise ConfigError(
                f"validation.{asking[0]} is set, but there is nothing to validate on: set validation.meta_path to a "
                "data list, or validation.share to the share of the training data that is held out"
            )
