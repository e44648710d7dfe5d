"""From sources to pairs, splits and tokens."""
