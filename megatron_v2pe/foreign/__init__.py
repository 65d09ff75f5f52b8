"""The one door for bytes that others may have written: files, text, JSON, YAML, pickles, images.

Everything the program reads from outside comes through here, with limits on size and depth, types that are checked, and
errors that name file, line and field. A lint rule forbids the readers of other libraries elsewhere (`pyproject.toml`).
`docs/security.md` says what is trusted and what is checked.
"""
