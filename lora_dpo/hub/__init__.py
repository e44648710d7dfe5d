"""Publishing: what travels, whether it may, the model card, and one commit that is whole or does not happen."""
