"""Talking to what was trained: one answer after the other in a terminal, or many prompts from a file."""
