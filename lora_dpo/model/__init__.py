"""The base model and its adapter."""
