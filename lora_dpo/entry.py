"""What `lora_dpo.dpo` and `lora_dpo.sft` have in common: one training, on this process's rank."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from lora_dpo.console import (
    EXIT_CODE_FILE,
    STOPPED_EXIT_CODE,
    errors_end_the_program,
    leave_exit_code,
    note,
    set_up_logging,
)
from lora_dpo.credentials import load_token
from lora_dpo.recipe.schema import Stage

_PURPOSE: dict[Stage, str] = {"sft": "Teach a model answers.", "dpo": "Align a model with DPO."}


def run(stage: Stage, argv: Sequence[str] | None) -> None:
    """Trains, evaluates and reports one stage of a recipe, or only computes its reference.

    Args:
        stage: The stage.
        argv: The words after the module's name; None takes the process's own.
    """
    arguments = _parser(stage).parse_intermixed_args(argv)
    set_up_logging(debug=arguments.debug)
    with errors_end_the_program(debug=arguments.debug):
        load_token()
        from lora_dpo.recipe.folds import check_is_one_training
        from lora_dpo.recipe.loading import load_recipe
        from lora_dpo.recipe.stages import stage_recipe

        recipe = stage_recipe(load_recipe(arguments.recipe, arguments.overrides), stage)
        check_is_one_training(recipe)
        # These take seconds to import, which a mistake in the recipe need not wait for.
        from lora_dpo.pipeline import align, compute_reference
        from lora_dpo.training.agreement import leave_together
        from lora_dpo.training.stopping import Stopped

        try:
            if stage == "dpo" and arguments.reference_only:
                compute_reference(recipe)
            else:
                align(recipe, overwrite=arguments.overwrite)
        except Stopped as stopped:
            again = " without --overwrite" if arguments.overwrite else ""
            under_lora_dpo = EXIT_CODE_FILE in os.environ  # which says how to go on itself
            note(str(stopped) if under_lora_dpo else f"{stopped} Started again{again}, the run goes on from there.")
            # By a file: a launcher kills the other processes where one fails.
            leave_exit_code(STOPPED_EXIT_CODE, stopped.reason)
        leave_together()


def _parser(stage: Stage) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"accelerate launch ... -m lora_dpo.{stage}", description=_PURPOSE[stage])
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run of this name")
    if stage == "dpo":
        parser.add_argument(
            "--reference-only", action="store_true", help="compute and keep the reference log-probs, and train nothing"
        )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser
