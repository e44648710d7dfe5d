from __future__ import annotations

import threading
import time

import pytest
import torch

from lora_dpo.inference.streaming import Writing, settled
from lora_dpo.model.answering import Answer
from tests.tiny import tiny_tokenizer

TEXT = " Bats  see\n  well: naïve “quotes”, 👍🏽 and 你好吗. "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("Bats", ""),
        ("Bats see", "Bats"),
        ("Bats see ", "Bats see"),
        ("Bats \n\n  se", "Bats"),
        ("你好", "你好"),
        ("ok 你", "ok 你"),
        ("ok \ufffd", "ok"),
        ("ok 你\ufffd", "ok"),
    ],
)
def test_what_later_tokens_cannot_change(text: str, expected: str) -> None:
    assert settled(text) == expected


class Pause:
    """Holds the writing after the fourth token."""

    def __init__(self) -> None:
        self.reached, self.over = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        self.over.wait()


def writing_of(ids: list[int], tokenizer, pause: Pause | None = None) -> Writing:
    """Writes tokens as `generate` does: the prompt first, then one after the other until it is told to stop."""

    def write(streamer, stopping_criteria) -> Answer:
        streamer.put(torch.tensor([[1, 2, 3]]))
        written = []
        for number, token in enumerate(ids):
            streamer.put(torch.tensor([token]))
            written.append(token)
            if stopping_criteria(torch.tensor([[token]]), None).all():
                break
            if pause is not None and number == 3:
                pause.wait()
        streamer.end()
        text = tokenizer.decode(written, skip_special_tokens=True).strip()
        return {"text": text, "ids": written, "ended": written == ids}

    return Writing(write, tokenizer)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_pieces_are_the_text(architecture: str) -> None:
    tokenizer = tiny_tokenizer(architecture)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    with writing_of(ids, tokenizer) as writing:
        pieces = list(writing)
    assert "".join(pieces) == TEXT.strip()
    assert len(pieces) > 6
    assert not any("\ufffd" in piece for piece in pieces)
    assert writing.answer == {"text": TEXT.strip(), "ids": ids, "ended": True}
    assert not writing._thread.is_alive()


def test_it_stops_when_it_is_asked_to() -> None:
    tokenizer = tiny_tokenizer("gpt2")
    ids = tokenizer("a b c d e f g h", add_special_tokens=False)["input_ids"]
    pause = Pause()
    with writing_of(ids, tokenizer, pause) as writing:
        pieces = [next(iter(writing))]
        pause.reached.wait()
        writing.stop()
        pause.over.set()
        pieces += writing
    assert "".join(pieces) == tokenizer.decode(ids[:5]).strip() == writing.answer["text"]
    assert writing.stopped
    assert not writing.answer["ended"]


def test_leaving_early_ends_the_thread() -> None:
    tokenizer, pause = tiny_tokenizer("gpt2"), Pause()
    with pytest.raises(ZeroDivisionError), writing_of([20] * 100, tokenizer, pause) as writing:
        pause.reached.wait()
        threading.Thread(target=lambda: (writing._stop.wait(), pause.over.set())).start()
        raise ZeroDivisionError
    assert not writing._thread.is_alive()
    assert len(writing.answer["ids"]) == 5


def test_what_goes_wrong_is_raised_where_the_pieces_are_read() -> None:
    def write(**_) -> Answer:
        time.sleep(0.01)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), Writing(write, tiny_tokenizer("gpt2")) as writing:
        list(writing)
    assert writing.answer is None
