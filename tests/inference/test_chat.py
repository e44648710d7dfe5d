from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.inference.chat import chat
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import find_model
from lora_dpo.inference.sampling import Sampling
from lora_dpo.inference.streaming import Writing

SHORT = Sampling(4)


class Typed(io.TextIOWrapper):
    """A stdin or stdout that says whether it is a terminal."""

    def __init__(self, content: bytes = b"", *, tty: bool = False) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


@pytest.fixture
def ask(work: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Returns a function that runs the verb; it returns what was printed."""

    def run(stdin: bytes | None = None, *, stdout_tty: bool = True, **options) -> str:
        monkeypatch.setattr(sys, "stdin", Typed(stdin or b"", tty=stdin is None))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: stdout_tty, raising=False)
        capsys.readouterr()
        options = {"prompt": None, "system": "", "as_json": False, **options}
        chat(find_model(options.pop("word", "adapter")), options.pop("sampling", SHORT), **options)
        return capsys.readouterr().out

    return run


def test_one_answer_is_all_that_is_printed(ask) -> None:
    model = ChatModel(find_model("adapter"))
    (answer,) = model.answers([model.encoder.prompt_ids([{"role": "user", "content": "Do bats see?"}])], SHORT)
    assert ask(prompt="Do bats see?") == answer["text"] + "\n"
    assert ask(b"Do bats see?\n", stdout_tty=False) == answer["text"] + "\n"
    assert ask(b"Something else", prompt="Do bats see?") == answer["text"] + "\n"
    assert ask(prompt="Do bats see?", system="Lie.") != answer["text"] + "\n"


def test_what_the_model_writes_cannot_move_the_cursor(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_dpo.inference.streaming.Writing.__iter__", _hostile)
    assert ask(prompt="Do bats see?") == "[2Jhi\n"
    assert ask(prompt="Do bats see?", stdout_tty=False) == "\x1b[2Jhi\n"


def _hostile(writing: Writing) -> Iterator[str]:
    writing.answer = {"text": "", "ids": [], "ended": True}
    yield "\x1b[2J"
    yield "hi"


def test_as_json_the_answer_can_be_had_again(ask) -> None:
    drawn = Sampling(4, temperature=3.0)
    whole = json.loads(ask(prompt="Do bats see?", system="Lie.", as_json=True, sampling=drawn))
    assert set(whole) == {"model", "prompt", "system", "answer", "tokens", "ended", "sampling"}
    assert (whole["model"], whole["prompt"], whole["system"]) == ("adapter", "Do bats see?", "Lie.")
    again = Sampling(**whole["sampling"])
    assert again.seed is not None
    said = ask(prompt="Do bats see?", system="Lie.", sampling=again, stdout_tty=False)  # a terminal is not shown all
    assert said == whole["answer"] + "\n"


@pytest.mark.parametrize(
    ("stdin", "options", "message"),
    [
        (b"", {}, "stdin is empty: there is nothing to answer."),
        (b" \n", {}, "stdin is empty: there is nothing to answer."),
        (b"caf\xe9", {}, "stdin is not UTF-8: byte 0xe9."),
        (b"", {"prompt": " "}, "--prompt is empty: there is nothing to answer."),
        (b"why " * 600, {}, "The question is too long: with what always stands before it, it has "),
        (None, {"stdout_tty": False}, "stdout is not a terminal, so there can be no conversation."),
        (None, {"as_json": True}, "--json is for one answer.\nGive what is to be answered: --prompt"),
    ],
)
def test_where_there_is_nothing_to_answer(ask, stdin: bytes | None, options: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        ask(stdin, **options)
    assert str(caught.value).startswith(message)
