"""Low-rank adapters (LoRA) on disk: PEFT's files, our checkpoints, the published code's unmerged folders; merging."""
