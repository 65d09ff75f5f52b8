"""A native export opened by `transformers` gives this project's logits, with ordinary positions and with V2PE."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from helpers.native_models import LLMS, SPECIAL, our_logits, small_config, small_state, write_native
from megatron_v2pe.v2pe.transformers_positions import transformers_positions

transformers = pytest.importorskip("transformers")
LOGITS = 2e-4  # absolute; measured at most ... on logits up to ...


def document(tiles, seed=0):
    """A document of text and images: ids, tiles of each image, pixels."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(10, 300, (9,), generator=generator)]
    for count in tiles:
        parts += [torch.tensor([5] + [7] * (4 * count) + [6]), torch.randint(10, 300, (5,), generator=generator)]
    return torch.cat(parts), list(tiles), torch.randn(sum(tiles), 3, 28, 28, generator=generator)


def opened(folder):
    kind = transformers.AutoModelForImageTextToText
    model, report = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="sdpa")
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    return model.eval()


@pytest.mark.parametrize("name", LLMS)
@pytest.mark.parametrize("stride", [None, 1, Fraction(1, 2)])
def test_logits(name, stride, tmp_path, pools):
    positions = {} if stride is None else {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": str(stride)}
    config = small_config(name, **positions)
    state = small_state(config)
    ids, tiles, pixels = document((1, 3, 2))
    arguments = {"ids": ids, "num_tiles": tiles, "pixels": pixels, "stride": stride}
    ours = pools[1].run(our_logits, config=config, state=state, **arguments)[0]
    write_native(tmp_path / "native", config, state)
    model = opened(tmp_path / "native")
    given = {"input_ids": ids[None], "pixel_values": pixels, "attention_mask": torch.ones_like(ids)[None]}
    if stride is not None:
        tokens = model.config.image_seq_length
        given["position_ids"] = transformers_positions(
            ids, image_token_id=SPECIAL["img_context_id"], stride=stride, tokens_per_tile=tokens
        )
    with torch.no_grad():
        theirs = model(**given).logits[0]
    print(name, stride, (ours - theirs).abs().max().item(), theirs.abs().max().item())
    assert (ours - theirs).abs().max() < LOGITS
