"""The recipe: what was asked, typed and checked, and the run folder that it fills."""
