"""Our model beside `transformers`, for every language model and tower: one training step and greedy answers.

Weights of a reference go into ours by the published names, and gradients come out by those names, both through the
tables of the converter (`checkpoint.hf.table`). Functions that run a model do so inside a `WorkerPool`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from helpers import family_reference, generation, parity
from helpers.family_cases import FAMILIES
from helpers.family_reference import Reference
from helpers.packs import IMG_CONTEXT, random_packs
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.generate.generation import GenerationOptions
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.native_config import ORIGINAL
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy

TOLERANCE = {"logits": 2e-4, "loss": 1e-5, "gradients": 1e-4}
"""Largest errors allowed, see `errors`. Measured over all cases: logits 1e-5 of 4.5, loss 1e-7, gradients 6e-6."""
CACHE_TOLERANCE = 1e-5
"""Of a step's logits with the cache beside those computed anew, relative to the largest. Measured: 1e-6."""
GRADIENT_FLOOR = 1e-3
"""Gradients are compared relative to their largest entry, but not below this share of the largest entry of all tensors:
sums in float32 differ by rounding of their terms, and terms may cancel."""
ANSWER_TOKENS = 6
ONE = ParallelConfig(use_distributed_optimizer=False)
TP2 = replace(ONE, tensor_model_parallel_size=2)
CP2 = replace(ONE, context_parallel_size=2)
PP2 = replace(ONE, pipeline_model_parallel_size=2)
LAYOUTS: dict[str, ParallelConfig] = {
    "one process": ONE,
    "TP2": TP2,
    "TP2 + SP": replace(TP2, sequence_parallel=True),
    "PP2": PP2,
    "CP2 ring": CP2,
    "CP2 all-to-all": replace(CP2, cp_comm_type="a2a"),
    "DP2": ParallelConfig(),
    "TP2 x CP2 + SP": replace(CP2, tensor_model_parallel_size=2, sequence_parallel=True),
    "TP2 x PP2 + SP": replace(PP2, tensor_model_parallel_size=2, sequence_parallel=True),
    "CP2 x PP2": replace(CP2, pipeline_model_parallel_size=2),
    "TP2, replicated tower": replace(TP2, vision_parallel="replicated"),
}
RECOMPUTE: dict[str, Any] = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
    "recompute_vision": True,
}
_RECOMPUTED = ("TP2 + SP", "CP2 ring", "CP2 x PP2", "TP2 x PP2 + SP")
"""Layouts that recompute every layer."""


def usual_layouts(name: str) -> list[str]:
    """Return a layout of each kind for a family: TP2, PP2 and CP2, forms of them in turn."""
    number = list(FAMILIES).index(name)
    return ["TP2" if number % 4 == 3 else "TP2 + SP", "PP2", ("CP2 ring", "CP2 all-to-all")[number % 2]]


def one_more_layout(name: str) -> str:
    """Return a further layout for a family, for positions of V2PE."""
    further = ("CP2 all-to-all", "TP2 + SP", "one process", "CP2 ring", "PP2")
    return further[list(FAMILIES).index(name) % len(further)]


def generating_layouts(name: str) -> list[str]:
    """Return the layouts in which a family answers."""
    return [("TP2", "CP2 ring", "PP2")[list(FAMILIES).index(name) % 3]]


class Runs:
    """Steps and answers of families, references made once for every family and kind of positions."""

    def __init__(
        self,
        run: Callable[..., Any],
        config_of: Callable[[str], dict[str, Any]] = lambda name: FAMILIES[name].config(),
        packs: str = "family",
        device: str = "cpu",
    ) -> None:
        """Remember how and what to run.

        Args:
            run: `run(processes, function, **arguments)` returns what the last rank gave.
            config_of: gives the `config.json` of a family.
            packs: kind of `random_packs`.
            device: where everything runs.
        """
        self._run, self._config_of, self._packs, self._device = run, config_of, packs, device
        self._weights: dict[str, dict[str, Tensor]] = {}
        self._steps: dict[tuple[str, StridePolicy, torch.dtype], Reference] = {}

    def errors(
        self,
        name: str,
        layout: str,
        policy: StridePolicy,
        planted_break: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, Any]:
        """Run one step of a family in a layout; return its errors beside the float32 reference, see `difference`."""
        config = self._config_of(name)
        case = parity.Case(
            hf_config=config,
            layout=LAYOUTS[layout],
            packs=random_packs(config, policy, self._packs),
            weights=self.weights(name),
            image_token_id=IMG_CONTEXT,
            policy=policy,
            dtype=dtype,
            options=RECOMPUTE if layout in _RECOMPUTED else {},
            planted_break=planted_break if planted_break in parity.BREAKS else None,
            device=self._device,
        )
        if planted_break in STATE_BREAKS:
            case = replace(case, weights=STATE_BREAKS[planted_break](dict(case.weights)))
        result = self._run(_processes(layout), parity.run, case=case)
        return errors(config, self.reference(name, policy), result)

    def errors_of_the_reference(self, name: str, policy: StridePolicy, dtype: torch.dtype) -> dict[str, Any]:
        """Return the errors of transformers in another type beside itself in float32."""
        return difference(self.reference(name, policy), self.reference(name, policy, dtype))

    def reference(self, name: str, policy: StridePolicy, dtype: torch.dtype = torch.float32) -> Reference:
        """Return the step of transformers."""
        if (name, policy, dtype) not in self._steps:
            config = self._config_of(name)
            self._steps[name, policy, dtype] = self._run(
                1,
                family_reference.step,
                config=config,
                image_token=IMG_CONTEXT,
                packs=random_packs(config, policy, self._packs),
                scaled=policy.version == "default",
                device=self._device,
                dtype=dtype,
            )
        return self._steps[name, policy, dtype]

    def answers(self, name: str, layouts: Sequence[str]) -> tuple[list[list[int]], dict[str, tuple[Any, float]]]:
        """Answer prompts greedily.

        Returns:
            What transformers answers; of every layout, and of static steps in one process, what ours answers, and the
            error of its cache.
        """
        config = answering(self._config_of(name))
        prompts = _prompts(config, self._packs)
        given = [(prompt.input_ids, prompt.tiles) for prompt in prompts]
        expected = self._run(
            1,
            family_reference.answer,
            config=config,
            image_token=IMG_CONTEXT,
            prompts=given,
            count=ANSWER_TOKENS,
            device=self._device,
        )
        case = generation.Case(
            hf_config=config,
            weights=self.weights(name),
            prompts=prompts,
            image_token_id=IMG_CONTEXT,
            dtype=torch.float32,
            options=GenerationOptions(max_new_tokens=ANSWER_TOKENS),
            device=self._device,
        )
        whole = self._run(1, generation.recomputed, case=case, ids=expected)
        found: dict[str, tuple[Any, float]] = {}
        for layout in layouts:
            for static in (False, True) if _processes(layout) == 1 else (False,):  # uncaptured on the CPU
                here = replace(case, layout=replace(LAYOUTS[layout], sequence_parallel=False), static=static)
                result = self._run(_processes(layout), generation.run, case=here)
                what = f"{layout}, static steps" if static else layout
                found[what] = result.ids, generation.relative_error(whole, result.logits)
        return expected, found

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return the reference's weights by checkpoint key, through the table of the published names."""
        if name not in self._weights:
            config = self._config_of(name)
            self._weights[name] = full_state(config, family_reference.published(config, self.native_weights(name)))
        return self._weights[name]

    def native_weights(self, name: str) -> dict[str, Tensor]:
        """Return the reference's weights by the names of its modules."""
        arguments = {"config": self._config_of(name), "image_token": IMG_CONTEXT}
        return self._run(1, family_reference.weights, **arguments)


def _processes(layout: str) -> int:
    return 2 if layout == "DP2" else LAYOUTS[layout].model_parallel_size


def answering(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config whose dynamic scaling does not set in: transformers scales every new token by another length."""
    llm = config["llm_config"]
    dynamic = "dynamic" in (llm.get("rope_scaling") or {}).values()
    return {**config, "llm_config": {**llm, "max_position_embeddings": 4096}} if dynamic else config


def _prompts(config: dict[str, Any], packs: str) -> list[Prompt]:
    """Return the documents of the first pack as prompts."""
    pack, found = random_packs(config, StridePolicy("default"), packs)[0], []
    tiles = pack.pixel_values.float()
    tokens_per_tile = InternVLConfig.from_hf(config).tokens_per_tile
    parts = (pack.input_ids.split(pack.seqlens), pack.position_ticks.values.split(pack.seqlens))
    for ids, ticks in zip(*parts, strict=True):
        count = int((ids == IMG_CONTEXT).sum()) // tokens_per_tile
        own, tiles = tiles[:count], tiles[count:]
        found.append(Prompt(ids, Ticks(ticks, pack.position_ticks.denominator), own, (count,) if count else ()))
    return found


def full_state(config: dict[str, Any], tensors: Mapping[str, Tensor], layout: str = ORIGINAL) -> dict[str, Tensor]:
    """Return the state by checkpoint key from the tensors of a layout, whose names must be those of its table."""
    table = mapping_table(InternVLConfig.from_hf(config), layout, tensors)
    table.check_names(tensors, "the reference")
    full: dict[str, Tensor] = {}
    for mapping in table.tensors:
        tensor = tensors[mapping.name]
        table.check_shape(mapping, tensor.shape, "the reference")
        whole = full.setdefault(mapping.key, tensor.new_zeros(mapping.key_shape))
        for first, rows in mapping.to_mcore(tensor):
            whole[first : first + len(rows)] = rows
    return full


def by_published_names(config: dict[str, Any], full: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by checkpoint key under the published names; what is padding has to be zero."""
    table, found = mapping_table(InternVLConfig.from_hf(config)), {}
    keys = {mapping.key for mapping in table.tensors}
    assert full.keys() == keys, f"only on one side: {sorted(full.keys() ^ keys)}"
    for mapping in table.tensors:
        whole = full[mapping.key]
        window = tuple(slice(0, size) for size in mapping.key_shape)
        outside = whole.clone()
        outside[window] = 0
        assert not outside.any(), f"{mapping.key}: its padding is not zero"
        found[mapping.name] = mapping.to_hf(lambda row, count, rows=whole[window]: rows[row : row + count])
    return found


def errors(config: dict[str, Any], reference: Reference, result: parity.Result) -> dict[str, Any]:
    """Compare a step of ours with the reference; see `difference`."""
    found = Reference(result.loss, result.logits, by_published_names(config, result.gradients))
    return difference(reference, found)


def difference(reference: Reference, other: Reference) -> dict[str, Any]:
    """Compare two steps.

    Returns:
        `logits`: the largest difference, in units of logits; `loss`: relative; `gradients`: the largest difference of
        any tensor's entries, relative to the tensor's largest entry (see `GRADIENT_FLOOR`); `worst`: its name.
    """
    names = reference.gradients.keys() ^ other.gradients.keys()
    assert not names, f"only on one side: {sorted(names)}"
    floor = GRADIENT_FLOOR * max(tensor.abs().max().item() for tensor in reference.gradients.values())
    of_each = {
        name: (tensor - other.gradients[name]).abs().max().item() / max(tensor.abs().max().item(), floor)
        for name, tensor in reference.gradients.items()
    }
    pairs = zip(reference.logits, other.logits, strict=bool(other.logits))  # none from data-parallel ranks
    worst = max(of_each, key=lambda name: of_each[name])
    return {
        "logits": max((torch.dist(a, b, float("inf")).item() for a, b in pairs), default=0.0),
        "loss": abs(reference.loss - other.loss) / abs(reference.loss),
        "gradients": of_each[worst],
        "worst": worst,
    }


def _swapped(ending: str, other: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return what exchanges the tensors whose keys end so."""

    def swap(state: dict[str, Tensor]) -> dict[str, Tensor]:
        pairs = [(key, key.removesuffix(ending) + other) for key in state if key.endswith(ending)]
        assert pairs
        for key, partner in pairs:
            state[key], state[partner] = state[partner], state[key]
        return state

    return swap


def _without(part: str, ending: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return what puts zeros in place of the tensors whose keys begin and end so."""

    def drop(state: dict[str, Tensor]) -> dict[str, Tensor]:
        keys = [key for key in state if key.startswith(part) and key.endswith(ending)]
        assert keys
        return {**state, **{key: torch.zeros_like(state[key]) for key in keys}}

    return drop


STATE_BREAKS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "norms of queries and keys swapped": _swapped("q_layernorm.weight", "k_layernorm.weight"),
    "biases of a decoder dropped": _without("language_model.", "linear_qkv.bias"),
    "biases of a tower dropped": _without("vision_model.", "linear_qkv.bias"),
}
BREAKS: list[tuple[str, str, str]] = [
    ("internlm2", "one process", "biases of a tower dropped"),
    ("internlm2", "TP2 + SP", "norm_reduction"),
    ("qwen2", "PP2", "biases of a decoder dropped"),
    ("qwen3", "CP2 ring", "norms of queries and keys swapped"),
    ("llama 3", "one process", "norms of queries and keys swapped"),
    ("qwen3", "TP2", "head_norm_reduction"),
    ("qwen2 tied", "PP2", "tied_reduction"),
]
"""Family, layout, and what is planted: a change of our weights, or a break of `parity.BREAKS`."""
