"""All pictures of a run, drawn from what its folder holds."""

from __future__ import annotations

from pathlib import Path

from lora_dpo.evaluation.outcomes import read_outcomes
from lora_dpo.evaluation.result_plots import draw_results
from lora_dpo.evaluation.training_plots import draw_training, read_metrics
from lora_dpo.recipe.run_folder import RunFolder


def draw_run(run: RunFolder) -> list[Path]:
    """Draws the pictures of a run's training, and of its evaluation if there was one.

    Returns:
        The files.

    Raises:
        UserError: The run has logged no step.
    """
    return draw_training(read_metrics(run.metrics), run.plots) + draw_results(read_outcomes(run.outcomes), run.plots)
