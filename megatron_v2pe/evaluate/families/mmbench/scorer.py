"""How MMBench, CCBench and Video-MME are scored: multiple choice, where every rotation of a question must be right."""

from __future__ import annotations

from megatron_v2pe.evaluate.scorers.multiple_choice import multiple_choice

MMBENCH = multiple_choice("mmbench")
SCORERS = (MMBENCH,)
SAME_AS = {"ccbench": "mmbench"}
