"""Align language models with LoRA + DPO, from raw preferences to a report."""

__version__ = "0.1.0"
