from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lora_dpo.console import err, out
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.conversation import Conversation
from lora_dpo.inference.found import find_model
from lora_dpo.inference.sampling import Sampling
from lora_dpo.inference.terminal import Terminal

SHORT = Sampling(4)
LONG = Sampling(450, temperature=5.0, seed=0)


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    for console in (out, err):
        monkeypatch.setattr(console, "_width", 80)


@pytest.fixture
def model(work: Path) -> ChatModel:
    return ChatModel(find_model("runs/small"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys):
    """Returns a function that types lines, or Ctrl-C, into a terminal; it returns what stood there after each."""

    def type_in(model: ChatModel, *lines: str | type, sampling: Sampling = SHORT, end: type = EOFError) -> list[str]:
        left, shown = iter(lines), []

        def read(prompt: str) -> str:
            assert prompt == "> "
            shown.append("".join(capsys.readouterr()).strip())
            line = next(left, None)
            if line is None:
                raise end
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        Terminal(model, Conversation(model.encoder, model.positions), sampling).run()
        return shown

    return type_in


def expected(model: ChatModel, *texts: str, base: bool = False) -> str:
    """Returns the greedy answer to the last of some questions and answers."""
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 9, texts, strict=False)]
    with model.write(model.encoder.prompt_ids(turns), SHORT, base=base) as writing:
        return "".join(writing)


def first_line(shown: str) -> str:
    return shown.partition("\n(cut")[0]


def test_questions_are_answered_in_a_conversation(model: ChatModel, said) -> None:
    greeting, one, two, forgotten, again = said(model, "Do bats see?", "All?", "/reset", " Do bats see? ")
    assert greeting.startswith(f"runs/small, on {model.base_name}"[:78])
    assert "/help shows the commands. Ctrl-C stops an answer, Ctrl-D leaves." in greeting
    answer = expected(model, "Do bats see?")
    assert first_line(one) == answer
    assert one.endswith("(cut after 4 tokens; /set max_new_tokens=8)")
    assert first_line(two) == expected(model, "Do bats see?", answer, "All?")
    assert forgotten == "Forgotten."
    assert again == one


def test_the_base_answers_the_last_question_and_leaves_the_conversation_as_it_is(model: ChatModel, said) -> None:
    _, one, base, two = said(model, "Do bats see?", "/base", "All?")
    tuned = expected(model, "Do bats see?")
    assert first_line(base).endswith(f":\n{expected(model, 'Do bats see?', base=True)}")
    assert first_line(base) != first_line(one)
    assert first_line(two) == expected(model, "Do bats see?", tuned, "All?")


def test_options_are_shown_and_set(model: ChatModel, said) -> None:
    _, shown, one, wrong, after = said(model, "/set max_new_tokens=2 top_k=5", "Hi?", "/set temprature=1", "/set")
    assert shown.splitlines() == [
        "max_new_tokens=2",
        "temperature=0.0",
        "top_p=1.0",
        "top_k=5",
        "repetition_penalty=1.0",
        "seed=none",
    ]
    assert "(cut after 2 tokens; /set max_new_tokens=4)" in one
    assert wrong == "Error: There is no option 'temprature'.\nDid you mean 'temperature'?"
    assert after == shown


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (
            "/rest",
            "Error: There is no command /rest.\nDid you mean '/reset'? A question may begin with",
        ),
        ("/base", "Error: Nothing has been asked yet.\nAsk first; /base then answers the same."),
        ("/reset now", "Error: /reset stands alone; 'now' was not read."),
        ("/set warm", "Error: 'warm' is not NAME=VALUE."),
        ("why? " * 600, "Error: The question is too long: "),
        ("   ", ""),
    ],
)
def test_mistakes_are_told_and_the_conversation_goes_on(model: ChatModel, said, line: str, answer: str) -> None:
    _, shown, after = said(model, line, "Hi?")
    assert shown.startswith(answer)
    assert first_line(after) == expected(model, "Hi?")


def test_a_model_without_a_base_says_so(work: Path, said) -> None:
    _, _, shown = said(ChatModel(find_model("base")), "Hi?", "/base")
    assert shown.startswith("Error: base does not say which model it was before the training.\nStart again with --base")


def test_help_lists_every_command(model: ChatModel, said) -> None:
    _, shown = said(model, "/help")
    assert [line.split()[0] for line in shown.splitlines()] == ["/base", "/reset", "/set", "/help", "/quit"]
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_leaving(model: ChatModel, said, end: type) -> None:
    assert len(said(model, end=end)) == 1
    assert len(said(model, "/quit", "Hi?")) == 1


def test_an_interrupt_just_after_an_answer_was_meant_for_it(
    model: ChatModel, said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_dpo.inference.terminal._TOO_LATE_SECONDS", 1000.0)
    assert said(model, "Do bats see?", KeyboardInterrupt, "/help")[-1].startswith("/base")
    monkeypatch.setattr("lora_dpo.inference.terminal._TOO_LATE_SECONDS", -1.0)
    assert len(said(model, "Do bats see?", KeyboardInterrupt, "/help")) == 2


def test_what_no_longer_fits_is_left_out_and_said(model: ChatModel, said) -> None:
    long = "Why is the sky blue over the sea? " * 6
    shown = said(model, long, long, long, long, long)
    assert shown[-1].startswith("(The oldest question and its answer no longer fit into the model's 512 positions")


@pytest.fixture
def interrupted(model: ChatModel, monkeypatch: pytest.MonkeyPatch):
    """Returns a function that lets Ctrl-C come so often once the first words of an answer are there."""

    def interrupt(times: int) -> None:
        write = model.write

        def writing(*arguments, **options):
            written = write(*arguments, **options)
            pieces = iter(written)

            class Interrupted(type(written)):
                def __iter__(self):
                    yield next(pieces)
                    for _ in range(times):
                        signal.raise_signal(signal.SIGINT)
                    yield from pieces

            written.__class__ = Interrupted
            return written

        monkeypatch.setattr(model, "write", writing)

    return interrupt


def test_the_first_interrupt_stops_the_answer_and_keeps_what_is_there(model: ChatModel, said, interrupted) -> None:
    interrupted(1)
    before = signal.getsignal(signal.SIGINT)
    _, one, two = said(model, "Do bats see?", "/help", sampling=LONG)
    assert one.endswith("(stopped)")
    assert len(one) > len("(stopped)") + 3
    assert two.startswith("/base")
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_interrupt_leaves(model: ChatModel, said, interrupted) -> None:
    interrupted(2)
    assert len(said(model, "Do bats see?", "/help", sampling=LONG)) == 1
