"""DPO training through TRL."""
