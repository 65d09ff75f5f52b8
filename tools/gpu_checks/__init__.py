"""The parts of `scripts/check_gpu.sh`: one file each, with a function that measures and one table of what came out."""
