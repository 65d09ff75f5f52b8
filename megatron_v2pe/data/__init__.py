"""From annotation files to packed micro-batches: text, tiles, labels, positions and loss weights.

Knows no model, no process group and no device; ranks arrive as plain integers.
"""
