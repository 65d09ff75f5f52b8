"""Every recipe by the name `--recipe` takes."""

from __future__ import annotations

from collections.abc import Callable

from megatron_v2pe.recipes.debug import debug
from megatron_v2pe.recipes.internvl2_2b import (
    internvl2_2b_baseline_32k,
    internvl2_2b_v2pe_32k,
    internvl2_2b_v2pe_256k,
)
from megatron_v2pe.recipes.internvl3 import (
    internvl3_1b_v2pe_32k,
    internvl3_1b_v2pe_128k,
    internvl3_8b_v2pe_32k,
    internvl3_8b_v2pe_128k,
    internvl3_38b_v2pe_32k,
    internvl3_38b_v2pe_128k,
)
from megatron_v2pe.recipes.long_context import long_context
from megatron_v2pe.recipes.lora import internvl2_2b_lora_32k, internvl3_8b_lora_32k
from megatron_v2pe.recipes.quickstart import quickstart
from megatron_v2pe.train.config import ExperimentConfig

RECIPES: dict[str, Callable[[], ExperimentConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        internvl2_2b_baseline_32k,
        internvl2_2b_v2pe_32k,
        internvl2_2b_v2pe_256k,
        internvl3_1b_v2pe_32k,
        internvl3_1b_v2pe_128k,
        internvl3_8b_v2pe_32k,
        internvl3_8b_v2pe_128k,
        internvl3_38b_v2pe_32k,
        internvl3_38b_v2pe_128k,
        internvl2_2b_lora_32k,
        internvl3_8b_lora_32k,
        debug,
        quickstart,
        long_context,
    )
}
