"""Cards are found by the names drivers give them; a variant is not taken for the common model."""

from __future__ import annotations

import pytest

from megatron_v2pe.device.cards import CARDS, card_named, peak_tflops


@pytest.mark.parametrize(
    ("name", "peak", "memory"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 80),
        ("NVIDIA H100 PCIe", 756.4, 80),
        ("NVIDIA H100 NVL", 835.5, 94),
        ("NVIDIA H200", 989.4, 141),
        ("NVIDIA H200 NVL", 835.5, 141),
        ("NVIDIA GH200 480GB", 989.4, 96),
        ("NVIDIA GH200 144G HBM3e", 989.4, 144),
        ("NVIDIA B200", 2250, 180),
        ("NVIDIA GB200", 2500, 186),
        ("NVIDIA A100-SXM4-80GB", 311.9, 80),
        ("NVIDIA A100 80GB PCIe", 311.9, 80),
        ("NVIDIA A100-SXM4-40GB", 311.9, 40),
        ("NVIDIA A100-PCIE-40GB", 311.9, 40),
        ("NVIDIA L40S", 362, 48),
        ("NVIDIA L40", 181, 48),
        ("NVIDIA L4", 121, 24),
        ("NVIDIA A10", 125, 24),
        ("NVIDIA A10G", 70, 24),
        ("NVIDIA RTX A6000", 154.8, 48),
        ("NVIDIA RTX 6000 Ada Generation", 364.2, 48),
        ("NVIDIA GeForce RTX 4090", 165.2, 24),
        ("NVIDIA GeForce RTX 5090", 209.5, 32),
        ("Tesla V100-SXM2-16GB", 125, 16),
        ("Tesla V100-SXM2-32GB", 125, 32),
        ("Tesla T4", 65, 16),
    ],
)
def test_names_of_drivers(name, peak, memory):
    card = card_named(name)
    assert card is not None and (card.peak_tflops, card.memory_gib) == (peak, memory)
    assert card.bf16 == (not name.startswith("Tesla"))


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_others_have_no_peak(name):
    assert peak_tflops(name) is None


def test_every_card_can_be_found():
    assert len({card.pattern for card in CARDS}) == len(CARDS)
    assert all(card.peak_tflops > 0 and card.memory_gib > 0 for card in CARDS)
