"""InternLM3: every tensor of the language model in an HF checkpoint, and its place in ours: the usual rows."""

from megatron_v2pe.checkpoint.hf.table import LANGUAGE_TABLES
from megatron_v2pe.checkpoint.hf.usual_rows import usual_rows
from megatron_v2pe.families.internlm3.config import ARCHITECTURE

LANGUAGE_TABLES.add(ARCHITECTURE, usual_rows)
