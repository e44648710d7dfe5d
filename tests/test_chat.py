"""`lora-dpo chat` as a user starts it: in a terminal, in a pipe, in a script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adapters import record, save_adapter
from tests.process import PATIENCE, ROOT, lora_dpo
from tests.terminal import terminal
from tests.tiny import save_endless_model

GREEDY = ("--temperature", "0", "--max-new-tokens", "8")
QUESTION = "Do bats see?"


@pytest.fixture(scope="session")
def _talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    base = save_endless_model(folder / "base")
    record(base, save_adapter(base, folder / "adapter", std=0.5))
    return folder


def piped(text: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `lora-dpo chat` with text on its stdin."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    command = [sys.executable, "-m", "lora_dpo", "chat", *words]
    return subprocess.run(command, cwd=cwd, env=env, input=text, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
def test_a_conversation_in_a_terminal(_talk: Path) -> None:
    with terminal(_talk, "chat", "adapter", *GREEDY) as screen:
        place = screen.wait_for("/help shows the commands.")
        place = screen.wait_for("\n> ", since=place)
        screen.type(f"{QUESTION}\n")
        place = screen.wait_for("\n> ", since=place)
        assert "\n(cut after 8 tokens; /set max_new_tokens=16)\n" in screen.shown
        screen.type("/base\n")
        place = screen.wait_for("\n> ", since=place)
        screen.type("/rest\n")
        place = screen.wait_for("Did you mean '/reset'?", since=place)
        screen.type("/set max_new_tokens=8000 temperature=9\n")
        place = screen.wait_for("seed=none", since=screen.wait_for("temperature=9.0", since=place))
        place = screen.wait_for("\n> ", since=place)
        screen.type("Tell me more.\n")
        place = screen.wait_for("Tell me more.\n", since=place)
        screen.wait_for(" ", since=place + 20)
        screen.type("\x03")  # Ctrl-C stops the answer
        place = screen.wait_for("(stopped)", since=place)
        place = screen.wait_for("\n> ", since=place)
        screen.type("\x1b[A")  # the line before, from the history
        place = screen.wait_for("Tell me more.", since=place)
        screen.type("\x15\x04")  # the line is emptied; Ctrl-D leaves
        assert screen.process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_an_interrupt_at_the_prompt_leaves_and_without_colour_there_is_none(_talk: Path) -> None:
    with terminal(_talk, "chat", "adapter", NO_COLOR="1", TERM="dumb") as screen:
        screen.wait_for("\n> ")
        assert "\x1b" not in screen.raw.partition("/help")[2]
        screen.type("\x03")
        assert screen.process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_one_prompt_gives_its_answer_alone(_talk: Path) -> None:
    result = lora_dpo("chat", "adapter", "--prompt", QUESTION, *GREEDY, cwd=_talk, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    answer = result.stdout.removesuffix("\n")
    assert answer == answer.strip() != ""
    whole = json.loads(piped(f"\n{QUESTION}\n", "adapter", *GREEDY, "--json", cwd=_talk).stdout)
    assert (whole["model"], whole["prompt"], whole["answer"]) == ("adapter", QUESTION, answer)
    assert (whole["tokens"], whole["sampling"]["temperature"]) == (8, 0.0)


@pytest.mark.slow
def test_a_mistake_ends_with_code_2_and_nothing_on_stdout(_talk: Path) -> None:
    result = piped("Hi", "adaptr", cwd=_talk)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: adaptr is neither a folder here, nor an adapter or a model on the Hub")
