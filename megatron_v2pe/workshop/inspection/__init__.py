"""Showing what a run trains on: packs and samples as text and as pictures."""
