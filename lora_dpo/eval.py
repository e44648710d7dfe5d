"""What `lora-dpo eval RUN` runs, and `accelerate launch -m lora_dpo.eval RUN` on several processes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from lora_dpo.console import errors_end_the_program, is_main_process, out, set_up_logging
from lora_dpo.credentials import load_token


def main(argv: Sequence[str] | None = None) -> None:
    """Measures a run before and after, and writes its report.

    Args:
        argv: The words after the module's name; None takes the process's own.
    """
    parser = argparse.ArgumentParser("accelerate launch ... -m lora_dpo.eval", description="Evaluate a trained run.")
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--prompt", choices=("chat", "harness"), default="chat", help="how multiple choice is put")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    arguments = parser.parse_args(argv)
    set_up_logging(debug=arguments.debug)
    with errors_end_the_program(debug=arguments.debug):
        load_token()
        from lora_dpo.evaluation.load import load_run  # these take seconds to import
        from lora_dpo.evaluation.report import print_report
        from lora_dpo.pipeline import evaluate_run
        from lora_dpo.recipe.run_folder import RunFolder
        from lora_dpo.training.agreement import leave_together

        run = RunFolder.open(arguments.run)
        report = evaluate_run(run, load_run(run), arguments.prompt)
        if is_main_process():
            out.print_json(json.dumps(report)) if arguments.json else print_report(report, run)
        leave_together()


if __name__ == "__main__":
    main()
