"""Serves a page until it is interrupted."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from lora_dpo.console import note, out
from lora_dpo.errors import UserError
from lora_dpo.ui.web.app import Site, application
from lora_dpo.ui.web.guard import LOOPBACK, Password

_SECONDS_TO_LEAVE = 2


@dataclass(frozen=True, slots=True)
class Address:
    """Where a page is served.

    Attributes:
        host: Address or name of this machine that is listened at.
        port: The port; 0 takes a free one.
        password: What is asked for; None draws a token that the printed address holds.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    password: str | None = None


def serve(make: Callable[[], AbstractContextManager[Site]], address: Address) -> None:
    """Serves a page until Ctrl-C.

    Args:
        make: Loads what the page needs, once it is known that it can be served.
        address: Where.

    Raises:
        UserError: The address cannot be listened at, or the password is empty.
    """
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
    if address.password is not None and not address.password.strip():
        raise UserError("The password is empty.", fix="Give another, or leave --password out.")
    listening = _listen(address)
    port = listening.getsockname()[1]
    local = address.host in LOOPBACK
    password = Password(address.password, port)
    with make() as site, suppress(KeyboardInterrupt):
        _say_where(address, port, password.query)
        app = application(site, password, LOOPBACK if local else None)
        server_of(app).run(sockets=[listening])


def server_of(app: ASGIApp) -> uvicorn.Server:
    """Returns what serves an application."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_SECONDS_TO_LEAVE,
        )
    )


def _say_where(address: Address, port: int, query: str) -> None:
    local = address.host in LOOPBACK
    name = "localhost" if local else socket.gethostname() if address.host in ("0.0.0.0", "::") else address.host
    out.print(f"http://{name}:{port}/{query}", markup=False, soft_wrap=True)
    if query:
        note("Whoever has this address can use the page; without its token nobody can, not even on this machine.")
    if local:
        note(
            f"Only this machine can reach it. From another: ssh -L {port}:localhost:{port} {socket.gethostname()} "
            "there, and the same address in its browser."
        )
    else:
        note("Others can reach it, and it is not encrypted.")
    note("Ctrl-C ends it.")


def _listen(address: Address) -> socket.socket:
    """Returns a socket that listens, before a model is asked anything."""
    try:
        family, _, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(128)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"The page cannot be served at {address.host}, port {address.port}: {error}.",
            fix="Take another port, --port 7861 or any free one by --port 0; or another --host.",
        ) from None
    return listening
