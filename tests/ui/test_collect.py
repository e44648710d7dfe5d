"""`lora-dpo collect` and `compare` as a user starts them: in a terminal, in a pipe, with a typo."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_dpo.ui.store import Store
from tests.process import PATIENCE, ROOT, lora_dpo
from tests.terminal import Screen, terminal

SHORT = ("--max-new-tokens", "6", "--temperature", "1")
COLLECT = ("collect", "q.txt", "--model", "base", "-o", "prefs.jsonl", "--annotator", "ann", *SHORT)
ASKS = "[q]uit\n"


@pytest.fixture
def asked(work: Path) -> Path:
    (work / "q.txt").write_text("Do bats see?\nIs glass liquid?\nWhy is the sky blue?\nWhat do bulls hate?\n")
    return work


def press(screen: Screen, key: str, text: str, since: int) -> int:
    """Presses a key and waits for what it shows."""
    screen.wait_for_keys()
    screen.type(key)
    return screen.wait_for(text, since=since)


def votes(work: Path) -> list[dict]:
    return Store(work / "prefs.jsonl").votes()


@pytest.mark.slow
def test_voting_with_every_key(asked: Path) -> None:
    editor = asked / "editor"
    editor.write_text("#!/bin/sh\nprintf 'My own words.\\n' > \"$1\"\n")
    editor.chmod(0o755)
    with terminal(asked, *COLLECT, EDITOR=str(editor), VISUAL=str(editor)) as screen:
        place = screen.wait_for(ASKS, since=screen.wait_for("Question 1 of 4"))
        place = press(screen, "\x1b[D", "left is better.", place)
        place = screen.wait_for(ASKS, since=screen.wait_for("Question 2 of 4", since=place))
        place = press(screen, "u", "Undone: left is better. It is asked again.", place)
        place = screen.wait_for(ASKS, since=screen.wait_for("Question 1 of 4", since=place))
        place = press(screen, "c", "Comment: ", place)
        screen.type("Too short.\n")
        place = screen.wait_for("It is stored with your vote.", since=place)
        place = press(screen, "x", "", place)  # a key without a meaning
        place = press(screen, "\x1b[C", "right is better.", place)
        place = screen.wait_for(ASKS, since=screen.wait_for("Question 2 of 4", since=place))
        place = press(screen, "e", "Which one is better", place)
        place = press(screen, "1", "left is better, edited.", place)
        place = screen.wait_for(ASKS, since=screen.wait_for("Question 3 of 4", since=place))
        place = press(screen, "g", "both good.", place)
        place = screen.wait_for(ASKS, since=screen.wait_for("Question 4 of 4", since=place))
        place = press(screen, "s", "That was the last question.", place)
        screen.wait_for("adapter.init_from=auto", since=place)
        assert screen.process.wait(PATIENCE) == 0
        assert max(map(len, screen.shown.splitlines())) <= 80
    found = votes(asked)
    assert [vote["choice"] for vote in found] == ["right", "left", "both_good", "skip"]
    assert found[0]["comment"] == "Too short."
    assert found[0]["chosen"] == found[0]["right"]["text"]
    assert found[1]["chosen"] == "My own words."
    assert found[1]["edited"]
    assert len((asked / "prefs.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_loses_nothing_and_the_same_command_goes_on(asked: Path, blow: int) -> None:
    with terminal(asked, *COLLECT, NO_COLOR="1") as screen:
        place = screen.wait_for(ASKS)
        place = press(screen, "1", "left is better.", place)
        place = screen.wait_for(ASKS, since=place)
        if blow == signal.SIGINT:
            screen.type("\x03")
            screen.wait_for("3 questions are left; the same command goes on.", since=place)
            assert screen.process.wait(PATIENCE) == 0
            assert not re.search(r"\x1b\[[0-9;]*(3|4|9|10)[0-7]m", screen.raw)  # no colour
        else:
            screen.process.kill()
            screen.process.wait()
    assert len(votes(asked)) == 1
    with terminal(asked, *COLLECT, TERM="dumb", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii") as screen:
        place = screen.wait_for(ASKS, since=screen.wait_for("Question 2 of 4"))
        assert screen.raw.isascii()
        assert "\x1b" not in screen.raw
        press(screen, "q", "3 questions are left", place)
        assert screen.process.wait(PATIENCE) == 0
    assert len(votes(asked)) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_in_tmux(asked: Path) -> None:
    tmux = ["tmux", "-f", "/dev/null", "-L", f"lora-dpo-{os.getpid()}"]

    def keys(*words: str) -> None:
        time.sleep(1)  # keys that come before the question is ready are forgotten
        subprocess.run([*tmux, "send-keys", "-t", "it", *words], check=True)

    def wait_for(text: str) -> str:
        end = time.monotonic() + PATIENCE
        while True:
            shown = subprocess.run([*tmux, "capture-pane", "-p", "-t", "it"], capture_output=True, text=True).stdout
            if text in shown:
                return shown
            assert time.monotonic() < end, shown
            time.sleep(0.1)

    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    shell = f"{shlex.quote(sys.executable)} -m lora_dpo {' '.join(COLLECT)}; cat"
    subprocess.run([*tmux, "new-session", "-d", "-s", "it", "-x", "80", "-y", "50", shell], env=env, check=True)
    try:
        shown = wait_for("[q]uit")
        assert "left ─" in shown
        keys("Left")
        wait_for("Question 2 of 4")
        keys("b")
        wait_for("Question 3 of 4")
        keys("q")
        wait_for("2 questions are left")
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    assert [vote["choice"] for vote in votes(asked)] == ["left", "both_bad"]


@pytest.mark.slow
def test_what_the_model_and_the_questions_say_cannot_move_the_cursor(work: Path) -> None:
    (work / "q.jsonl").write_text(json.dumps({"prompt": "\x1b[2J\x1b[31mred\x07 [bold]x[/bold] \u202e\x9b3m?"}) + "\n")
    with terminal(work, *("collect", "q.jsonl", *COLLECT[2:])) as screen:
        screen.wait_for(ASKS)
        assert "\x1b[2J" not in screen.raw
        assert "[2J[31mred [bold]x[/bold]" in screen.shown
        assert "\x07" not in screen.raw
        screen.wait_for_keys()
        screen.type("q")
        assert screen.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("collect",), "It is not said which model writes the answers."),
        (("collect", "--model", "base"), "There is no terminal to vote in"),
        (("collect", "--summary", "-o", "gone.jsonl"), "There is no file gone.jsonl."),
        (("collect", "--model", "gone", "--web", "--annotator", "a\nb"), "The annotator's name is 'a\\nb'."),
        (("compare", "gone", "--web", "--annotator", " "), "The annotator's name is ' '."),
        (("compare", "runs/smal"), "Did you mean 'runs/small'?"),
        (("compare", "base"), "base does not say which model it was before the training"),
        (("compare", "runs/small", "--questions", "0"), "--questions is 0"),
        (("compare", "runs/small", "--questions", "q.tx"), "Did you mean 'q.txt'?"),
    ],
)
def test_mistakes_are_told(asked: Path, words: tuple[str, ...], message: str) -> None:
    done = lora_dpo(*words, cwd=asked)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.replace("\n", " ")
    assert not (asked / "prefs.jsonl").exists()


def test_a_summary_for_people_and_machines(asked: Path) -> None:
    from tests.ui.votes import draft, vote

    store = Store(asked / "prefs.jsonl")
    for annotator in ("ann", "bob"):
        for question in ("A?", "B?"):
            store.add(vote(draft(question), prefers="Yes, all.", annotator=annotator))
    found = json.loads(lora_dpo("collect", "-o", "prefs.jsonl", "--json", cwd=asked).stdout)
    assert found["annotators"] == {"ann": 2, "bob": 2}
    assert found["agreement"] == [{"annotators": ["ann", "bob"], "pairs": 2, "observed": 1.0, "cohen_kappa": None}]
    shown = lora_dpo("collect", "-o", "prefs.jsonl", "--summary", cwd=asked).stdout
    assert "100% of 2 pairs alike; Cohen's kappa not defined (all say the same)" in shown
    assert "4, of ann 2, bob 2" in shown


def test_compare_prints_both_answers(asked: Path) -> None:
    words = ("compare", "runs/small", "--questions", "q.txt", "--max-new-tokens", "6")
    found = json.loads(lora_dpo(*words, "--json", cwd=asked).stdout)
    assert [one["prompt"][0]["content"] for one in found["questions"]][:1] == ["Do bats see?"]
    assert len(found["questions"]) == 4
    assert found["mean_tokens"] == {"base": 6.0, "tuned": 6.0}
    assert all(one["base"]["text"] != one["tuned"]["text"] for one in found["questions"])
    shown = lora_dpo(*words, cwd=asked).stdout
    assert "Question 4 of 4" in shown
    assert "base: " in shown
    assert "tuned: runs/small" in shown


@pytest.mark.slow
def test_compare_streams_in_a_terminal(asked: Path) -> None:
    with terminal(asked, "compare", "runs/small", "--questions", "q.txt", "--max-new-tokens", "6") as screen:
        screen.wait_for("tuned: runs/small", since=screen.wait_for("Question 4 of 4"))
        assert screen.process.wait(PATIENCE) == 0
