"""An answer while it is being written: its text comes in pieces, and it can be stopped."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from rich.cells import cell_len
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer

from lora_dpo.model.answering import Answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNFINISHED_WORD = re.compile(r"\s*\S*\Z")
_HALF_A_CHARACTER = "\ufffd"


class Writing:
    """An answer that a thread of its own writes.

    Iterating yields the text as it comes, whole words at a time; joined, the pieces are the answer's text. It is a
    context manager: on leaving it, the writing has ended, by itself or because it was stopped.

    Args:
        write: Writes the answer; takes further arguments of `generate`.
        tokenizer: The model's tokenizer.

    Attributes:
        answer: The answer once the iteration has ended, also where it was stopped; None before.
    """

    def __init__(self, write: Callable[..., Answer], tokenizer: PreTrainedTokenizerBase) -> None:
        self.answer: Answer | None = None
        self._write = write
        self._pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()
        self._stop = threading.Event()
        self._streamer = _Streamer(tokenizer, self._pieces.put)
        self._thread = threading.Thread(target=self._run, name="answer")
        self._thread.start()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Asks the thread to write no more tokens; what is there already still comes."""
        self._stop.set()

    def __iter__(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def __enter__(self) -> Writing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            watching: dict[str, Any] = {
                "streamer": self._streamer,
                "stopping_criteria": until(self._stop),
            }
            self.answer = self._write(**watching)
            self._pieces.put(self.answer["text"][len(self._streamer.sent) :])
        except BaseException as error:  # is raised where the pieces are read
            self._pieces.put(error)
        self._pieces.put(None)


def until(event: threading.Event) -> StoppingCriteriaList:
    """Returns what ends the writing of answers once an event is set."""
    return StoppingCriteriaList([_Stop(event)])


class _Stop(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device, dtype=torch.bool)


class _Streamer(BaseStreamer):
    """Passes text on once later tokens cannot change it any more.

    All tokens are decoded each time: some tokenizers write a token otherwise at the beginning of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pass_on: Callable[[str], None]) -> None:
        self.sent = ""
        self._tokenizer = tokenizer
        self._pass_on = pass_on
        self._ids: list[int] | None = None

    def put(self, value: Tensor) -> None:
        if self._ids is None:  # the prompt comes first
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        text = settled(self._tokenizer.decode(self._ids, skip_special_tokens=True).lstrip())
        if len(text) > len(self.sent):
            self._pass_on(text[len(self.sent) :])
            self.sent = text

    def end(self) -> None:
        """Does nothing: the last word comes with the answer."""


def settled(text: str) -> str:
    """Returns the part of a text that no further token changes: up to the last white space.

    A wide character is a word of its own, since Chinese and Japanese are written without spaces; of a character that
    several tokens make, the first part waits for the others.

    Args:
        text: What is decoded so far, without white space in front.
    """
    if text and text[-1] != _HALF_A_CHARACTER and cell_len(text[-1]) == 2:
        return text
    return _UNFINISHED_WORD.sub("", text, count=1)
