"""The command `lora-dpo`: a module a group of verbs, one function a verb, each a few lines over the library below."""

from __future__ import annotations

import sys

# isort: off
# Importing a module adds its verbs; `lora-dpo --help` shows the groups in this order.
from lora_dpo.cli import training, cluster, measuring, inference, people, publishing  # noqa: F401

# isort: on
from lora_dpo.cli.app import app
from lora_dpo.console import errors_end_the_program, replace_what_cannot_be_shown, set_up_logging


def main() -> None:
    """Runs the command line; a mistake ends with a message and exit code 2."""
    debug = "--debug" in sys.argv[1:]
    replace_what_cannot_be_shown()
    set_up_logging(debug=debug)
    with errors_end_the_program(debug=debug):
        # --debug may stand after the verb as well.
        app(["--debug"] * debug + [word for word in sys.argv[1:] if word != "--debug"])
