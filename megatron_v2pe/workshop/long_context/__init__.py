"""Long-context training data made from ordinary instruction data, as the paper of V2PE (arXiv 2412.09616) does.

`long_vqa` asks about few of many images, `long_mr` hides needles in interleaved text and images; both to an exact
number of tokens. `pipeline` is the only module here that knows the rest of `data`; `write` makes the files. See
`docs/long_context_data.md`.
"""
