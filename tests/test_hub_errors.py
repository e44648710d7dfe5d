from __future__ import annotations

import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants, errors

from lora_dpo import hub_errors
from lora_dpo.hub_errors import explain_hub_error, offline_unless_reachable


class _Refusing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:  # noqa: N802 - the name that http.server calls
        self.send_response(401)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch):
    """Returns a function that makes a URL the Hub's, for a client that is not offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_errors._answers.cache_clear()  # another test's Hub may have had the same port
    return lambda url: monkeypatch.setattr(constants, "ENDPOINT", url)


def test_a_hub_that_answers_is_asked_even_if_it_refuses(endpoint) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint(f"http://127.0.0.1:{server.server_port}")
        with offline_unless_reachable():
            assert constants.HF_HUB_OFFLINE is False
    finally:
        server.shutdown()
        server.server_close()


def test_a_hub_that_refuses_connections_is_not_asked_until_the_end_of_the_block(endpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    endpoint(f"http://127.0.0.1:{port}")
    with offline_unless_reachable():
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False
    with pytest.raises(ZeroDivisionError), offline_unless_reachable():
        _ = 1 / 0
    assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_never_answers_is_waited_for_once(endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_errors, "_PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections and says nothing
        endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}")
        for _ in range(3):
            with offline_unless_reachable():
                assert constants.HF_HUB_OFFLINE is True
        listener.setblocking(False)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):  # there was one connection
            listener.accept()


def test_offline_stays_offline(endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with offline_unless_reachable():
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is True


def hub_error(kind: type[Exception]) -> Exception:
    """Returns an error of the Hub's client, which wants a response to be built from."""
    error = kind.__new__(kind)
    Exception.__init__(error, "from the Hub")
    return error


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.GatedRepoError, "The model org/name is gated, and this token may not read it."),
        (errors.RepositoryNotFoundError, "There is no model org/name on the Hub, or it is private."),
        (errors.RevisionNotFoundError, "The model org/name has no such revision on the Hub."),
        (
            errors.LocalEntryNotFoundError,
            "The model org/name is not in the local cache, and the Hub cannot be reached.",
        ),
        (errors.OfflineModeIsEnabled, "The model org/name is not in the local cache, and the Hub cannot be reached."),
        (ConnectionError, "The model org/name is not in the local cache, and the Hub cannot be reached."),
    ],
)
def test_errors_of_the_hub_in_words_also_as_a_cause(kind: type[Exception], words: str) -> None:
    outer = OSError("we could not connect")
    outer.__cause__ = hub_error(kind)
    for error in (hub_error(kind), outer):
        explained = explain_hub_error(error, "org/name")
        assert explained is not None
        assert explained.what == words
        assert explained.fix


def test_other_errors_are_not_the_hub_s() -> None:
    assert explain_hub_error(OSError("disk"), "org/name") is None
    assert explain_hub_error(ValueError("x"), "org/name") is None
