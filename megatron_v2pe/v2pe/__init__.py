"""Variable visual position encoding: positions as an integer lattice, strides, rotary angles."""
