"""A conversation in a terminal: lines are read, answers are written as they come, and a few commands."""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lora_dpo.console import interrupts_are_seen, out, show_error
from lora_dpo.errors import UserError, did_you_mean
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.conversation import Conversation, Question
from lora_dpo.inference.sampling import Sampling
from lora_dpo.inference.wrapping import wrapped
from lora_dpo.model.answering import Answer

with suppress(ImportError):  # Python may be built without it; lines are then read without editing
    import readline  # noqa: F401 - `input` edits lines and remembers them once it is imported

_PROMPT = "> "
_TOO_LATE_SECONDS = 1.0
"""How long after an answer's end a Ctrl-C still means the answer, and not the conversation."""
_BOLD, _PLAIN = "\001\033[1m\002", "\001\033[0m\002"
"""Between 1 and 2 readline expects what takes no room on the line."""


class Terminal:
    """A conversation in a terminal.

    Args:
        model: What answers.
        conversation: The conversation, at its beginning or later.
        sampling: How answers are written.
    """

    def __init__(self, model: ChatModel, conversation: Conversation, sampling: Sampling) -> None:
        self._model = model
        self._conversation = conversation
        self._sampling = sampling
        self._last: tuple[Question, Sampling] | None = None
        self._answered_at = -math.inf
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/base": ("Answer the last question with the base model; nothing is kept.", self._base),
            "/reset": ("Forget the conversation.", self._reset),
            "/set": ("Show how answers are written, or change it: /set temperature=0.7", self._set),
            "/help": ("Show this.", self._help),
            "/quit": ("Leave, as Ctrl-D does.", self._quit),
        }

    def run(self) -> None:
        """Reads and answers lines until the user leaves."""
        self._model.load()
        found, base = self._model.found, self._model.base_name
        _say(f"{found.name}, on {base}" if found.is_adapter else found.name)
        _say("/help shows the commands. Ctrl-C stops an answer, Ctrl-D leaves.")
        prompt = f"{_BOLD}{_PROMPT}{_PLAIN}" if out.is_terminal and not out.no_color else _PROMPT
        with suppress(EOFError, KeyboardInterrupt):
            while True:
                out.print()
                try:
                    with interrupts_are_seen():
                        line = input(prompt)
                    self._take(line)
                except KeyboardInterrupt:  # it may have been meant for an answer that has just ended by itself
                    if time.monotonic() - self._answered_at > _TOO_LATE_SECONDS:
                        raise
        out.print()

    def _take(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._command(line)
            elif line.strip():
                self._ask(line.strip())
        except UserError as error:
            show_error(str(error))

    def _command(self, line: str) -> None:
        word, _, rest = line.strip().partition(" ")
        if word not in self._commands:
            fix = f"{did_you_mean(word, self._commands)} A question may begin with / after a space."
            raise UserError(f"There is no command {word}.", fix=fix)
        self._commands[word][1](rest.strip())

    def _ask(self, text: str) -> None:
        question = self._conversation.ask(text, self._sampling.max_new_tokens)
        if question.forgotten:
            _say(_forgotten(question.forgotten, self._conversation.positions))
        sampling = self._sampling.seeded()
        answer = self._write(question, sampling)
        self._conversation.add(question, answer["text"])
        self._last = dataclasses.replace(question, forgotten=0), sampling

    def _base(self, rest: str) -> None:
        _check_empty("/base", rest)
        if self._last is None:
            raise UserError("Nothing has been asked yet.", fix="Ask first; /base then answers the same.")
        if self._model.base_name is None:
            raise UserError(
                f"{self._model.found.name} does not say which model it was before the training.",
                fix="Start again with --base MODEL.",
            )
        _say(f"{self._model.base_name}:")
        self._write(*self._last, base=True)

    def _reset(self, rest: str) -> None:
        _check_empty("/reset", rest)
        self._conversation.reset()
        self._last = None
        _say("Forgotten.")

    def _set(self, rest: str) -> None:
        sampling = self._sampling
        for word in rest.split():
            sampling = sampling.with_word(word)
        self._sampling = sampling
        for name, value in dataclasses.asdict(sampling).items():
            _say(f"{name}={'none' if value is None else value}")

    def _help(self, rest: str) -> None:
        _check_empty("/help", rest)
        for name, (text, _) in self._commands.items():
            out.print(f"{name:8}{text}", markup=False)

    def _quit(self, rest: str) -> None:
        _check_empty("/quit", rest)
        raise EOFError

    def _write(self, question: Question, sampling: Sampling, *, base: bool = False) -> Answer:
        """Writes an answer as it comes; what is there when Ctrl-C stops it counts."""
        writing = self._model.write(question.prompt_ids, sampling, base=base)
        with writing, _interrupted(writing.stop), _without_echo():
            for text in wrapped(writing, out.width):
                out.out(text, end="", highlight=False)
            out.print()
            answer, stopped = writing.answer, writing.stopped
        assert answer is not None  # the iteration has ended
        self._answered_at = time.monotonic()
        _say(_how_it_ended(answer, sampling, stopped=stopped))
        return answer


def _how_it_ended(answer: Answer, sampling: Sampling, *, stopped: bool) -> str:
    """Returns what must be said of an answer, or the empty text."""
    if stopped and not answer["ended"]:
        return "(stopped)"
    if not answer["ended"] and len(answer["ids"]) < sampling.max_new_tokens:
        return "(cut: the model has no more positions; /reset begins anew)"
    if not answer["ended"]:
        return f"(cut after {sampling.max_new_tokens} tokens; /set max_new_tokens={2 * sampling.max_new_tokens})"
    return "" if answer["text"] else "(an empty answer)"


def _forgotten(count: int, positions: int | None) -> str:
    oldest = "The oldest question and its answer" if count == 1 else f"The {count} oldest questions and their answers"
    return f"({oldest} no longer fit into the model's {positions} positions and are left out.)"


def _check_empty(command: str, rest: str) -> None:
    if rest:
        raise UserError(f"{command} stands alone; '{rest}' was not read.")


def _say(text: str) -> None:
    if text:
        out.print(text, style="dim", markup=False)


@contextmanager
def _interrupted(stop: Callable[[], None]) -> Iterator[None]:
    """Lets the first Ctrl-C call `stop`, and a second one interrupt as ever."""

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _without_echo() -> Iterator[None]:
    """Keeps what is typed meanwhile from standing within the answer; it is read after it."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = termios.tcgetattr(sys.stdin)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
