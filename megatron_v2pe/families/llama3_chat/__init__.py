"""The conversation template `llama3-chat`; the language model itself stands in `families/llama/`."""
