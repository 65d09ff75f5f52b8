"""What GPUs can do at most: dense matrix products in bf16, and memory. From NVIDIA's data sheets, not measured here.

A rate says little without what it is a share of. The peaks are those of dense products at the boost clock with
accumulation in fp32 (half of the figures that data sheets print "with sparsity"); cards of one name may be sold with
other clocks or limits of power, for which there is `logging.peak_tflops`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One model of a card."""

    pattern: str
    """Regular expression that is found in the name the driver gives it, capitals ignored."""
    peak_tflops: float
    """Dense bf16 (fp16 where it has no bf16), in 10^12 operations a second."""
    memory_gib: float
    """As sold: what data sheets call GB is GiB, of which the driver keeps a little."""
    bf16: bool = True
    """Whether it computes in bf16."""


CARDS: tuple[Card, ...] = (
    Card(r"\bGB200\b", 2500, 186),
    Card(r"\bB200\b", 2250, 180),
    Card(r"\bB100\b", 1750, 180),
    Card(r"\bGH200\b.*144", 989.4, 144),
    Card(r"\bGH200\b", 989.4, 96),
    Card(r"\bH200 NVL\b", 835.5, 141),
    Card(r"\bH200\b", 989.4, 141),
    Card(r"\bH100 NVL\b", 835.5, 94),
    Card(r"\bH100 PCIe\b", 756.4, 80),
    Card(r"\bH100\b", 989.4, 80),
    Card(r"\bH800 PCIe\b", 756.4, 80),
    Card(r"\bH800\b", 989.4, 80),
    Card(r"\bH20\b", 148, 96),
    Card(r"\bA100\b.*80\s?GB|\bA800\b.*80\s?GB", 311.9, 80),
    Card(r"\bA100\b|\bA800\b", 311.9, 40),
    Card(r"\bA30\b", 165, 24),
    Card(r"\bL40S\b", 362, 48),
    Card(r"\bL40\b", 181, 48),
    Card(r"\bL4\b", 121, 24),
    Card(r"\bA40\b", 149.7, 48),
    Card(r"\bA10G\b", 70, 24),
    Card(r"\bA10\b", 125, 24),
    Card(r"RTX 6000 Ada", 364.2, 48),
    Card(r"RTX A6000", 154.8, 48),
    Card(r"RTX 5090$", 209.5, 32),
    Card(r"RTX 4090$", 165.2, 24),
    Card(r"RTX 3090$", 71, 24),
    Card(r"\bV100\b.*32\s?GB", 125, 32, bf16=False),
    Card(r"\bV100\b", 125, 16, bf16=False),
    Card(r"\bT4\b", 65, 16, bf16=False),
)
"""The first whose pattern is found counts: variants stand before the common model."""


def card_named(name: str) -> Card | None:
    """Return what is known of a card by the name its driver gives it; None for a part of one, or an unknown one."""
    if re.search(r"\bMIG\b", name):
        return None
    return next((card for card in CARDS if re.search(card.pattern, name, re.IGNORECASE)), None)


def peak_tflops(name: str) -> float | None:
    """Return the peak of a card by its name, None where it is not known."""
    card = card_named(name)
    return None if card is None else card.peak_tflops
