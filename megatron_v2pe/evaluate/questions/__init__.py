"""What the `questions.py` of several families share: reading question files, single images, wording, tables."""
