"""Where computation runs: CPU with gloo or CUDA with NCCL, and how processes find each other."""
