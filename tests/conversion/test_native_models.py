"""A native export opened by `transformers` gives this project's logits and answers, also with V2PE positions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from helpers.native_models import (
    LLMS,
    VISION,
    VISION_6B,
    document,
    outcomes,
    small_config,
    small_state,
    write_native,
)
from megatron_v2pe.checkpoint.hf.open_source import open_hf
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.v2pe.transformers_positions import transformers_positions

transformers = pytest.importorskip("transformers")
LOGITS = 2e-4  # absolute; measured at most 1.5e-5 on logits up to 19
STRIDES = (None, 1, Fraction(1, 2))
ANSWER = 6
DOCUMENTS = [document((1, 3, 2), 6), document((2,), 60, seed=1), document((1, 3, 2), 30, seed=2)]
"""Two are beyond the trained length of 64 positions, at which `dynamic` sets in; at stride 1 too. They become longer:
`dynamic` of transformers keeps the frequencies of the longest document it has seen."""


def opened(folder):
    kind = transformers.AutoModelForImageTextToText
    model, report = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="sdpa")
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    return model.eval()


def inputs(model, item, stride):
    """What `forward` and `generate` take. Without a mask transformers takes gaps between positions for documents."""
    given = {
        "input_ids": item.ids[None],
        "pixel_values": item.pixels,
        "attention_mask": torch.ones_like(item.ids)[None],
    }
    if stride is not None:
        tokens = model.config.image_seq_length
        where = {"image_token_id": model.config.image_token_id, "tokens_per_tile": tokens}
        given["position_ids"] = transformers_positions(item.ids, stride=stride, **where)
    return given


@pytest.mark.parametrize(
    ("name", "tower"), [*((name, VISION) for name in LLMS), ("internlm2", VISION_6B), ("qwen2", VISION_6B)]
)
def test_logits_and_answers(name, tower, tmp_path, pools):
    for select_layer, strides in ((-1, STRIDES[1:]), (-2, STRIDES[:1])):
        positions = {"rope_pos_id_version": "v2pe_rnd"} if strides[0] is not None else {}
        config = small_config(name, select_layer=select_layer, vision_config=tower, **positions)
        state = small_state(config)
        pairs = [(item, stride) for item in DOCUMENTS for stride in strides]
        items, asked = [list(side) for side in zip(*pairs, strict=True)]
        arguments = {"documents": items, "strides": asked, "tokens": ANSWER}
        ours = pools[1].run(outcomes, config=config, state=state, **arguments)[0]
        write_native(tmp_path / "native", config, state)
        model = opened(tmp_path / "native")
        for (item, stride), (logits, answer) in zip(pairs, ours, strict=True):
            given = inputs(model, item, stride)
            with torch.no_grad():
                theirs = model(**given).logits[0]
            assert (logits - theirs).abs().max() < LOGITS
            if stride is not None:
                without = model(**{key: value for key, value in given.items() if key != "position_ids"}).logits[0]
                assert (logits - without).abs().max() > 100 * LOGITS
            ids = model.generate(**given, max_new_tokens=ANSWER, do_sample=False, eos_token_id=None)
            assert ids[0, len(item.ids) :].tolist() == answer
        model.save_pretrained(tmp_path / "saved")  # as transformers writes it: every field of its classes, its names
        assert open_hf(tmp_path / "saved").model == InternVLConfig.from_hf(config)
