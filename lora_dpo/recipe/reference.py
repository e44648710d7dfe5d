"""What a recipe must say for its reference to be computed in a step of its own."""

from __future__ import annotations

from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import Recipe


def check_reference_is_kept(recipe: Recipe) -> None:
    """Checks that there is something to compute before the training.

    Raises:
        UserError: The reference is computed at every step.
    """
    if recipe.dpo.reference == "live":
        raise UserError(
            "dpo.reference is live, so there are no reference log-probs to compute beforehand.",
            fix="Use dpo.reference=cached, or leave --reference-only out.",
        )
