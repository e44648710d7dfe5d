"""Judges of whether an answer is true, each with its measured agreement with human labels."""
