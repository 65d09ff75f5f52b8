"""How ScienceQA is scored: multiple choice."""

from __future__ import annotations

from megatron_v2pe.evaluate.scorers.base import percent_of
from megatron_v2pe.evaluate.scorers.multiple_choice import multiple_choice

SCIENCEQA = multiple_choice("scienceqa", percent_of("accuracy"))
SCORERS = (SCIENCEQA,)
