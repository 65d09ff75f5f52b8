"""Indexed data sets: samples tokenised once, images measured and read once, opened by memory map, packed from lengths.

`layout` says what is in the folder, `build` writes it (with `pieces`, then `finish`), `samples` reads it, `plan` packs
it, `reader` makes micro-batches of it.
"""
