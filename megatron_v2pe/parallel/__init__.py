"""Parallel topology and attention over packed documents."""
