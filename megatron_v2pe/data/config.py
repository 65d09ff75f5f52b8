"""Settings of the data pipeline, named after the flags of the published training scripts where those exist.

What depends on the checkpoint (tile size, tokens per tile) or on the run (seed, ranks) is not repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from megatron_v2pe.base.config_tree import OneOf, check_values
from megatron_v2pe.data.conversation import USUAL_TEMPLATE
from megatron_v2pe.data.loss_weights import LOSS_REDUCTIONS
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range

_Tokens = Annotated[int, Range(1, 1 << 24)]
_Tiles = Annotated[int, Range(1, 1000)]
_Frames = Annotated[int, Range(1, 100_000)]


@dataclass(frozen=True)
class DataConfig:
    """Annotations, images, conversation template, packing and loss weights."""

    meta_path: str = ""
    """Data list: a JSON object, dataset name -> annotation, root, repeat_time and further settings."""
    indexed_path: str = ""
    """Indexed data set to train on in place of a data list: a folder made by `tools/preprocess_data.py`."""
    template: str | None = None
    """Conversation template (the published `conv_style`); unset: the checkpoint's."""
    max_seq_length: _Tokens = 2048
    """Longest document in tokens; longer ones are rejected, never cut."""
    force_image_size: Annotated[int, Range(1, 1 << 14)] | None = None
    """Side of a tile in pixels the checkpoint must have; unset: the checkpoint's."""
    pad2square: bool = False
    """Pad an image to a square before it is resized to a single tile: only without augmentation, and only where
    `dynamic_image_size` is off; a tile of a grid is square already."""
    dynamic_image_size: bool = True
    """Cut an image into as many tiles as its shape asks for; off: one tile each."""
    dynamic_max_patch: bool = False
    """Share `max_dynamic_patch` among the images of a multi-image sample."""
    use_thumbnail: bool = True
    """Add the whole image as a last tile where it was cut into several."""
    min_dynamic_patch: _Tiles = 1
    """Fewest tiles of an image, thumbnail not counted."""
    max_dynamic_patch: _Tiles = 12
    """Most tiles of an image, thumbnail not counted; a dataset may set its own."""
    normalize_type: Literal["imagenet", "clip", "siglip"] = "imagenet"
    """Mean and deviation the vision tower was trained with."""
    min_num_frame: _Frames = 4
    """Fewest frames drawn from a video."""
    max_num_frame: _Frames = 20
    """Most frames drawn from a video."""
    use_data_resampling: bool = False
    """Draw datasets by the square root of their size instead of their size."""
    num_images_expected: Annotated[int, Range(1, 1_000_000)] = 12
    """Most tiles in a pack; one document with more is rejected."""
    max_packed_tokens: _Tokens = 8192
    """Most tokens in a pack."""
    max_buffer_size: Annotated[int, Range(1, 1_000_000)] = 20
    """Packs kept open while documents are placed; the fullest leaves when there are more. Of a data list."""
    packing_window: Annotated[int, Range(1, 10**12)] | None = 100_000
    """Samples of an indexed data set packed together, in the order of an epoch; unset: a whole epoch."""
    pack_padding_multiple: Annotated[int, Range(1, 1 << 20)] = 1
    """With `max_padding_share`: what context parallelism pads a document to, twice its size (times the tensor parallel
    size with sequence parallelism); one number for all layouts of a run. Of an indexed data set."""
    max_padding_share: Annotated[float, Range(0, 1)] = 1.0
    """Most padding in a pack of several documents, as a share of `max_packed_tokens`; 1: any."""
    balance_attention: bool = True
    """Deal the packs of a step out to data parallel ranks by the cost of their attention. Of an indexed data set."""
    loss_reduction: Annotated[str, OneOf(LOSS_REDUCTIONS.names)] = "token"
    """Weight of a document with x supervised tokens, spread evenly over them: `token` x, `sample` 1, `square`
    sqrt(x)."""
    num_workers: Annotated[int, Range(0, 1024)] = 0
    """Processes per rank that decode and cut images; 0: in the training process, where text is always encoded."""
    max_skipped_samples: Annotated[int, Range(0, 10**12)] = 0
    """Samples that may be rejected before the run stops with the reasons; each is counted and reported."""

    @property
    def template_name(self) -> str:
        """Name of the conversation template; that of a run is settled once its checkpoint is known."""
        return self.template or USUAL_TEMPLATE

    def validate(self) -> None:
        """Check values that no type can hold apart, and those that must agree with one another.

        Raises:
            ConfigError: naming the setting and the numbers.
        """
        check_values(self, "data")
        if not self.meta_path and not self.indexed_path:
            raise ConfigError(
                "data.meta_path is empty: name the JSON file that lists the datasets, or an indexed data set in "
                "data.indexed_path"
            )
        if self.template == "":
            raise ConfigError("data.template is empty, for example internlm2-chat")
        if self.max_padding_share < 1 and self.pack_padding_multiple == 1:
            raise ConfigError(
                f"data.max_padding_share is {self.max_padding_share}, but data.pack_padding_multiple 1 means no "
                "padding: set it to twice the context parallel size"
            )
        self._ordered("min_dynamic_patch", "max_dynamic_patch")
        self._ordered("min_num_frame", "max_num_frame")
        self._ordered("max_seq_length", "max_packed_tokens")

    def _ordered(self, smaller: str, larger: str) -> None:
        low, high = getattr(self, smaller), getattr(self, larger)
        if low > high:
            raise ConfigError(f"data.{smaller} {low} is above data.{larger} {high}")
