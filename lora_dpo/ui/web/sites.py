"""What `--web` serves for each of the verbs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import Found
from lora_dpo.inference.sampling import Sampling
from lora_dpo.ui import collect, compare
from lora_dpo.ui.ballot import CompareBallot
from lora_dpo.ui.store import Store
from lora_dpo.ui.web.app import Site
from lora_dpo.ui.web.chatting import chat_site
from lora_dpo.ui.web.collecting import collect_site
from lora_dpo.ui.web.comparing import compare_site
from lora_dpo.ui.web.serve import Address, serve


def serve_collect(request: collect.Request, address: Address) -> None:
    """Serves the page of `lora-dpo collect`.

    Raises:
        UserError: It cannot be served, or the questions, the models or the store cannot be used.
    """

    @contextmanager
    def make() -> Iterator[Site]:
        with collect.make_desk(request).open() as desk:
            yield collect_site(desk, request.annotator)
            collect.print_end(desk)

    serve(make, address)


def serve_compare(request: compare.Request, output: Path, annotator: str | None, address: Address) -> None:
    """Serves the page of `lora-dpo compare`.

    Raises:
        UserError: It cannot be served, or the model, the questions or the store cannot be used.
    """

    @contextmanager
    def make() -> Iterator[Site]:
        Store(output)  # before the model is loaded
        questions = compare.questions_of(request)
        ballot = CompareBallot(compare.both_models(request), request.sampling, output)
        yield compare_site(ballot, questions, request.system, annotator)

    serve(make, address)


def serve_chat(found: Found, sampling: Sampling, system: str, address: Address) -> None:
    """Serves the page of `lora-dpo chat`.

    Raises:
        UserError: It cannot be served, or the model cannot be read.
    """

    @contextmanager
    def make() -> Iterator[Site]:
        model = ChatModel(found)
        model.load()
        yield chat_site(model, sampling, system)

    serve(make, address)
