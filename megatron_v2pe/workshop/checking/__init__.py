"""Checking before a long run starts that everything a data list names is there."""
