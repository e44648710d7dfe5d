"""What `lora-dpo eval SUBJECT` runs, and `accelerate launch -m lora_dpo.eval SUBJECT` on several processes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from lora_dpo.console import errors_end_the_program, is_main_process, note, out, set_up_logging
from lora_dpo.credentials import load_token
from lora_dpo.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Measures a run, an adapter or a model before and after and writes a report, or exports answers.

    Args:
        argv: The words after the module's name; None takes the process's own.
    """
    arguments = _parser().parse_intermixed_args(argv)
    set_up_logging(debug=arguments.debug)
    with errors_end_the_program(debug=arguments.debug):
        load_token()
        _check_together(arguments)
        _export(arguments) if arguments.export else _measure(arguments)
        from lora_dpo.training.agreement import leave_together

        leave_together()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("accelerate launch ... -m lora_dpo.eval", description="Measure before and after.")
    parser.add_argument("subject", help="folder of a run, an adapter or a model, or a Hub id")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the recipe's")
    parser.add_argument("--data", help="a test set, as data.path is written in a recipe")
    parser.add_argument("--base", help="the model before, for an adapter or a model from elsewhere")
    parser.add_argument("--output", help="folder of the results")
    parser.add_argument("--prompt", choices=("chat", "harness"), default="chat", help="how multiple choice is put")
    parser.add_argument("--export", choices=("alpaca-eval", "mt-bench"), help="only write answers for this judge")
    parser.add_argument("--questions", type=Path, help="what --export asks")
    parser.add_argument("--harness", help="tasks of lm-evaluation-harness, by commas")
    parser.add_argument("--harness-path", type=Path, help="folder with harness tasks of your own")
    parser.add_argument("--limit", type=int, help="documents of each harness task at most")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _check_together(arguments: argparse.Namespace) -> None:
    for option, value, needed, given in (
        ("--questions", arguments.questions, "--export", arguments.export),
        ("--harness-path", arguments.harness_path, "--harness", arguments.harness),
        ("--limit", arguments.limit, "--harness", arguments.harness),
    ):
        if value is not None and given is None:
            raise UserError(f"{option} has no meaning without {needed}.", fix=f"Add {needed}, or leave it out.")
    if arguments.export and arguments.harness:
        raise UserError("--export writes answers and no report, so --harness has no place.", fix="Run them one by one.")


def _measure(arguments: argparse.Namespace) -> None:
    from lora_dpo.evaluation.asked import ask

    asked = ask(
        arguments.subject,
        base=arguments.base,
        data=arguments.data,
        output=arguments.output,
        overrides=arguments.overrides,
        needs_test_set=arguments.harness is None,
    )
    from lora_dpo.evaluating import measure  # these take seconds to import
    from lora_dpo.evaluation.harness import read_tasks
    from lora_dpo.evaluation.report import print_report

    tasks = None
    if arguments.harness is not None:
        tasks = read_tasks(arguments.harness.split(","), arguments.harness_path, arguments.limit)
    report = measure(asked, arguments.prompt, tasks)
    if is_main_process():
        out.print_json(json.dumps(report)) if arguments.json else print_report(report, asked.output)
    if arguments.json:
        note(f"The report is in {asked.output.path}")


def _export(arguments: argparse.Namespace) -> None:
    from lora_dpo.evaluation.asked import ask
    from lora_dpo.evaluation.export_answers import MAX_NEW_TOKENS, how_to_judge, read_export

    answers = read_export(arguments.export, arguments.questions)
    asked = ask(
        arguments.subject,
        base=arguments.base,
        data=arguments.data,
        output=arguments.output,
        overrides=[f"evaluation.max_new_tokens={MAX_NEW_TOKENS}", *arguments.overrides],
        needs_test_set=arguments.questions is None,
    )
    from lora_dpo.evaluating import export

    files = export(asked, answers)
    if is_main_process():
        if arguments.json:
            out.print_json(json.dumps({"files": [str(file) for file in files]}))
        else:
            out.print("\n".join(map(str, files)), soft_wrap=True)
    note(f"Judge them with: {how_to_judge(arguments.export, files)}")


if __name__ == "__main__":
    main()
