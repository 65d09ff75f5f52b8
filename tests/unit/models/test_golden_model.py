"""The model against numbers of the reference implementation: every intermediate, logits, loss, every gradient."""

from __future__ import annotations

import pytest
import torch

from helpers import golden as golden_cases
from helpers.hf_names import to_full_state

CASES = [
    "v2pe_default",
    "v2pe_fix_stride1",
    "v2pe_packed_default_token",
    "v2pe_packed_default_square",
    "v2pe_packed_v2pe_fix_stride1_token",
    "v2pe_default_text_only",
    "v2pe_default_long_dynamic_ntk",
]
ABSOLUTE = 2e-4  # measured: logits 3.1e-5, tower 7e-6, projected features 2.4e-6 (fp32 noise on logits of 10 is 3e-5)
LOSS = 1e-5  # relative; measured 4.4e-7
GRADIENT = 1e-4  # relative to the largest entry; measured 9e-6
CACHED = 1e-5  # with the cache against recomputed, relative to the largest logit; measured 1.3e-6
STAGES = {
    "vit": "vit_last_hidden_state",
    "shuffled": "pixel_shuffled",
    "projected": "image_embeds",
    "fused": "inputs_embeds",
}


@pytest.fixture(scope="module", params=CASES)
def case(request, pools, golden):
    """Our result, the golden tensors and their description."""
    path = golden / "model" / f"{request.param}.safetensors"
    result = pools[1].run(
        golden_cases.run_case,
        checkpoint=str(golden / "reference_checkpoint"),
        case=str(path),
        inputs=str(golden / "model" / "inputs.safetensors"),
    )[0]
    meta, gold = golden_cases.read(path)
    return result, gold, meta


def test_positions_are_equal(case):
    result, gold, _ = case
    assert torch.equal(result["positions"].float(), gold["position_ids"][0].float())


def test_every_stage(case):
    result, gold, _ = case
    flags = gold["image_flags"].bool()
    compared = 0
    for ours, theirs in STAGES.items():
        if ours in result and theirs in gold:
            expected = gold[theirs][0] if ours == "fused" else gold[theirs][flags]
            assert (result[ours] - expected).abs().max() < ABSOLUTE, ours
            compared += 1
    assert compared or "logits" not in gold


def test_logits(case):
    result, gold, meta = case
    if "logits" not in gold:
        assert meta["loss_reduction"] == "square"  # this case holds loss and gradients only
        return
    start = int(gold["logits_from"][0]) if "logits_from" in gold else 0
    assert (result["logits"][start:] - gold["logits"][0]).abs().max() < ABSOLUTE


def test_loss(case):
    result, gold, _ = case
    expected = gold["loss"].item()
    assert abs(result["loss"] - expected) / expected < LOSS


def test_every_gradient(case):
    result, _, _ = case
    assert result["gold_gradients"]
    for name, expected in result["gold_gradients"].items():
        ours = _by_hf_name(result["gradients"], name, expected)
        error = (ours - expected).abs().max() / expected.abs().max()
        assert error < GRADIENT, (name, error)


def test_text_only_gives_the_tower_zero_gradients(pools, golden):
    result = pools[1].run(
        golden_cases.run_case,
        checkpoint=str(golden / "reference_checkpoint"),
        case=str(golden / "model" / "v2pe_default_text_only.safetensors"),
        inputs=str(golden / "model" / "inputs.safetensors"),
    )[0]
    for name, gradient in result["gradients"].items():
        if name.startswith("vision"):
            assert gradient.abs().max() == 0, name


@pytest.mark.parametrize("case_name", ["v2pe_gen_default", "v2pe_gen_fix_stride1"])
def test_greedy_generation(pools, golden, case_name):
    path = golden / "model" / f"{case_name}.safetensors"
    _, gold = golden_cases.read(path)
    result = pools[1].run(
        golden_cases.run_generation,
        checkpoint=str(golden / "reference_checkpoint"),
        case=str(path),
        inputs=str(golden / "model" / "inputs.safetensors"),
    )[0]
    assert result["positions"].tolist() == gold["prompt_position_ids"][0].double().tolist()
    assert result["ids"] == gold["generated_ids"].tolist()
    assert (result["logits"] - gold["recomputed_logits"]).abs().max() < ABSOLUTE  # measured 1.7e-5
    scale = result["recomputed"].abs().max()
    assert (result["logits"] - result["recomputed"]).abs().max() / scale < CACHED


def _by_hf_name(gradients, name, like):
    """Our gradient of one HF tensor; gate and up are halves of one tensor of ours."""
    if ".feed_forward.w1." in name or ".feed_forward.w3." in name:
        layer = name.split("layers.")[1].split(".")[0]
        halves = gradients[f"language_model.decoder.layers.{layer}.mlp.linear_fc1.weight"].chunk(2)
        return halves[0 if ".w1." in name else 1]
    key, moved = next(iter(to_full_state({name: torch.arange(like.numel()).view(like.shape)}, 4).items()))
    ours = gradients[key][: moved.shape[0]]
    back = torch.empty_like(ours).flatten()
    back[moved.flatten()] = ours.flatten()
    return back.view(like.shape)
