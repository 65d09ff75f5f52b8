"""How fast answers come: decode and prefill beside transformers' `generate`, and prefill shared by two processes.

The peer is a Llama of the same shape with the same weights (V2PE off), run by transformers on the same cores in the
same process, in turns; both sides must choose the same tokens. Ratios are medians of ratios of neighbouring turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.generation import GenerationOptions, generate
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from perf._training import Shape, cores

DESCRIPTION = "decode and prefill beside transformers' generate on the same cores; prefill over two processes"
SHAPES = {
    "hidden256": Shape(layers=4, heads=4, groups=2, vocab=2048),
    "hidden2048": Shape(layers=8, heads=32, groups=8),
}
PARTS = ("decode", "prefill", "context_parallel")
POLICY = StridePolicy("default")


def run(argv: list[str]) -> dict[str, Any]:
    """Measure; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py generation", description=DESCRIPTION)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default: all)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="for decode (default: both)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="for decode (default: 1 8)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens before decode (default: %(default)s)")
    parser.add_argument("--new", type=int, default=65, help="tokens decoded, the first by prefill (default: 65)")
    parser.add_argument("--prefill", type=int, default=16384, help="tokens of prefill (default: %(default)s)")
    parser.add_argument("--shared", type=int, default=32768, help="tokens prefilled by two (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="cores of one process (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side (default: %(default)s)")
    arguments = parser.parse_args(argv)
    from megatron_v2pe.workshop.worker_pool import WorkerPool

    one, two = WorkerPool(1, 1800), WorkerPool(2, 1800)
    result: dict[str, Any] = {"type": "fp32", "threads": arguments.threads, "repeats": arguments.repeats}
    both = {"threads": arguments.threads, "repeats": arguments.repeats}
    try:
        if "decode" in arguments.parts:
            tokens = {"prompt": arguments.prompt, "new": arguments.new}
            result["decode"] = [
                one.run(decode_beside, shape=SHAPES[name], name=name, batch=batch, **tokens, **both)[0]
                for name in arguments.shapes
                for batch in arguments.batches
            ]
        if "prefill" in arguments.parts:
            shape = SHAPES["hidden256"]
            result["prefill"] = [one.run(prefill_beside, shape=shape, tokens=arguments.prefill, **both)[0]]
        if "context_parallel" in arguments.parts:
            result["context_parallel"] = [_shared(one, two, arguments.shared, arguments.repeats)]
    finally:
        one.close()
        two.close()
    result["speed"] = "ours over the peer's: above 1, ours is faster"
    result["of ideal"] = "seconds of one process on one core over twice those of two processes on a core each"
    return result


def _prompts(batch: int, tokens: int, denominator: int, vocab: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(tokens)
    ticks, nothing = Ticks(torch.arange(tokens) * denominator, denominator), torch.empty(0, 3, 448, 448)
    draws = torch.randint(3, vocab - 10, (batch, tokens), generator=generator)
    return [Prompt(row, ticks, nothing, ()) for row in draws]


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def decode_beside(
    shape: Shape, name: str, batch: int, prompt: int, new: int, threads: int, repeats: int
) -> dict[str, Any]:
    """Measure decode: the time of an answer less that of one of a single token, for both sides."""
    options = ModelOptions()
    with cores(threads), built(shape.hf_config(), ParallelConfig(), options, POLICY, shape.vocab - 1) as model:
        engine, peer = Engine(model.eval()), peer_of(model, shape)
        prompts = _prompts(batch, prompt, model.rotary.denominator, shape.vocab)
        ids = torch.stack([one.input_ids for one in prompts])

        def ours(count: int) -> list[list[int]]:
            return [answer.token_ids for answer in generate(engine, prompts, GenerationOptions(count))]

        def theirs(count: int) -> list[list[int]]:
            return peer(ids, count)[:, prompt:].tolist()

        if ours(new) != theirs(new):
            raise AssertionError(f"{name}: the peer chooses other tokens")
        speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(repeats):
            for side, answer in (("ours", ours), ("theirs", theirs)):
                first, whole = _timed(lambda a=answer: a(1))[0], _timed(lambda a=answer: a(new))[0]
                speeds[side].append(batch * (new - 1) / (whole - first))
        ratios = [a / b for a, b in zip(speeds["ours"], speeds["theirs"], strict=True)]
    return {
        "shape": name,
        "batch": batch,
        "ours tokens/s": round(statistics.median(speeds["ours"]), 1),
        "transformers tokens/s": round(statistics.median(speeds["theirs"]), 1),
        "speed": round(statistics.median(ratios), 3),
    }


def prefill_beside(shape: Shape, tokens: int, threads: int, repeats: int) -> dict[str, Any]:
    """Measure the first token of one long prompt."""
    options = ModelOptions()
    with cores(threads), built(shape.hf_config(), ParallelConfig(), options, POLICY, shape.vocab - 1) as model:
        engine, peer = Engine(model.eval()), peer_of(model, shape)
        prompts = _prompts(1, tokens, model.rotary.denominator, shape.vocab)
        ids = prompts[0].input_ids.unsqueeze(0)
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(repeats):
            taken, answers = _timed(lambda: generate(engine, prompts, GenerationOptions(1)))
            seconds["ours"].append(taken)
            taken, theirs = _timed(lambda: peer(ids, 1))
            seconds["theirs"].append(taken)
            if answers[0].token_ids != theirs[0, tokens:].tolist():
                raise AssertionError("the peer chooses another token")
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        "tokens": tokens,
        "ours s": round(statistics.median(seconds["ours"]), 3),
        "transformers s": round(statistics.median(seconds["theirs"]), 3),
        "speed": round(statistics.median(ratios), 3),
    }


def _shared(one: Any, two: Any, tokens: int, repeats: int) -> dict[str, Any]:
    taken: dict[str, list[float]] = {"alone": [], "shared": []}
    for _ in range(repeats):
        for name, pool, size in (("alone", one, 1), ("shared", two, 2)):
            taken[name].append(max(pool.run(prefill, shape=SHAPES["hidden256"], tokens=tokens, size=size)))
    ratios = [a / b / 2 for a, b in zip(taken["alone"], taken["shared"], strict=True)]
    return {
        "tokens": tokens,
        "one process s": round(statistics.median(taken["alone"]), 3),
        "two processes s": round(statistics.median(taken["shared"]), 3),
        "of ideal": round(statistics.median(ratios), 3),
    }


def prefill(shape: Shape, tokens: int, size: int) -> float:
    """Prefill one prompt over `size` ranks with a core each; return the seconds until every rank is done."""
    layout = ParallelConfig(context_parallel_size=size)
    with cores(1), built(shape.hf_config(), layout, ModelOptions(), POLICY, shape.vocab - 1) as model:
        engine = Engine(model.eval())
        prompts = _prompts(1, tokens, model.rotary.denominator, shape.vocab)
        generate(engine, _prompts(1, 256, model.rotary.denominator, shape.vocab), GenerationOptions(1))
        dist.barrier()
        began = time.perf_counter()
        generate(engine, prompts, GenerationOptions(1))
        dist.barrier()
        return time.perf_counter() - began


def peer_of(model: Any, shape: Shape) -> Callable[[Tensor, int], Tensor]:
    """Return transformers' greedy `generate` of a Llama with the weights of our model: (ids [batch, L], new tokens)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    llm = model.internvl.llm
    config = LlamaConfig(
        vocab_size=llm.vocab_size,
        hidden_size=llm.hidden_size,
        intermediate_size=llm.ffn_hidden_size,
        num_hidden_layers=llm.num_layers,
        num_attention_heads=llm.num_attention_heads,
        num_key_value_heads=llm.num_query_groups,
        max_position_embeddings=1 << 20,
        rms_norm_eps=llm.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": llm.rope.base},
        tie_word_embeddings=False,
    )
    peer: Any = LlamaForCausalLM(config).eval()
    peer.load_state_dict(llama_state(model, shape))

    @torch.inference_mode()
    def answer(ids: Tensor, count: int) -> Tensor:
        mask = torch.ones_like(ids)
        return peer.generate(
            ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        )

    return answer


def llama_state(model: Any, shape: Shape) -> dict[str, Tensor]:
    """Weights of our decoder under Llama's names."""
    language, vocab = model.language_model, model.internvl.llm.vocab_size
    state = {
        "model.embed_tokens.weight": language.embedding.word_embeddings.weight[:vocab],
        "model.norm.weight": language.decoder.final_layernorm.weight,
        "lm_head.weight": language.output_layer.weight[:vocab],
    }
    for number, layer in enumerate(language.decoder.layers):
        joint = layer.self_attention.linear_qkv.weight.unflatten(0, (shape.groups, -1, 64))
        gate, up = layer.mlp.linear_fc1.weight.chunk(2)
        for name, weight in {
            "input_layernorm": layer.input_layernorm.weight,
            "post_attention_layernorm": layer.pre_mlp_layernorm.weight,
            "self_attn.q_proj": joint[:, :-2].flatten(0, 2),
            "self_attn.k_proj": joint[:, -2].flatten(0, 1),
            "self_attn.v_proj": joint[:, -1].flatten(0, 1),
            "self_attn.o_proj": layer.self_attention.linear_proj.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.mlp.linear_fc2.weight,
        }.items():
            state[f"model.layers.{number}.{name}.weight"] = weight
    return {name: weight.detach() for name, weight in state.items()}
