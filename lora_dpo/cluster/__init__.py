"""The machine: its GPUs, and the launch that fits them. Nothing here imports torch at module level."""
