"""The positions a checkpoint is asked with: those it was trained with, at one stride."""

from __future__ import annotations

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.v2pe.settings import Stride, StridePolicy, usual_stride


def inference_policy(config: InternVLConfig, stride: Stride | None = None, version: str | None = None) -> StridePolicy:
    """Return the positions a checkpoint is asked with: those it was trained with, at one stride.

    Args:
        config: the checkpoint's; its `v2pe` says what it was trained with.
        stride: positions a tile spans; without it the checkpoint's own, or the usual one.
        version: `default` or `v2pe_fix`, where it is to be stated; it must fit the checkpoint's.

    Raises:
        ConfigError: a stride or a V2PE version for a checkpoint that was trained without, or the reverse.
    """
    trained = config.v2pe.rope_pos_id_version
    if version == "v2pe_rnd":
        raise ConfigError("rope_pos_id_version v2pe_rnd draws strides for training; ask with v2pe_fix and a stride")
    if version is not None and (version == "default") != (trained == "default"):
        raise ConfigError(
            f"rope_pos_id_version {version} was asked for, but the checkpoint was trained with {trained}, whose rotary "
            "embedding is another"
        )
    if trained == "default":
        if stride is not None:
            raise ConfigError(
                f"rope_pos_id_stride {stride} was asked for, but the checkpoint was trained with rope_pos_id_version "
                "default, which has none; leave it out"
            )
        return StridePolicy("default")
    usual = config.v2pe.stride or usual_stride(config.tokens_per_tile)
    return StridePolicy("v2pe_fix", stride if stride is not None else usual)


def describe_positions(config: InternVLConfig, policy: StridePolicy, asked: Stride | None = None) -> str:
    """Return in a line which positions a checkpoint is asked with, and who chose the stride.

    Args:
        config: the checkpoint's.
        policy: what `inference_policy` gave.
        asked: the stride the user named; None: none.
    """
    if policy.version == "default":
        return "positions: default, one for every token"
    tile = config.tokens_per_tile
    if asked is not None:
        who = "asked for"
    elif config.v2pe.stride:
        who = "the checkpoint's own"
    else:
        who = f"chosen: a quarter of a tile's tokens, for {config.v2pe.rope_pos_id_version} has none of its own"
    return f"positions: {policy.version}, stride {policy.stride} of {tile} ({who})"
