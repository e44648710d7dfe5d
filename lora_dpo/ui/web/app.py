"""One page as a web application: its addresses, and the errors that they have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from lora_dpo.errors import UserError
from lora_dpo.ui.web.guard import Guard, Password
from lora_dpo.ui.web.pages import Page, page, static
from lora_dpo.ui.web.requests import mistake, read_json, text_of

_THREADS = 128
"""Requests that may wait at once for a draft, or for a model's next word."""


@dataclass(frozen=True, slots=True)
class Site:
    """One of the pages.

    Attributes:
        page: Which.
        about: What its script is told at the beginning.
        routes: Its own addresses.
        standing: Returns what else its script is told, which changes.
    """

    page: Page
    about: dict[str, Any]
    routes: Sequence[BaseRoute]
    standing: Callable[[], dict[str, Any]] = dict


def application(site: Site, password: Password, hosts: frozenset[str] | None) -> ASGIApp:
    """Returns the application of a page.

    Args:
        site: The page.
        password: What is asked for.
        hosts: The names that a request may ask for; None is any.
    """

    async def index(request: Request) -> Response:
        return page(site.page)

    async def about(request: Request) -> Response:
        return JSONResponse({"page": site.page, **site.about, **await to_thread.run_sync(site.standing)})

    async def login(request: Request) -> Response:
        text = text_of(await read_json(request), "password")
        if not await to_thread.run_sync(password.is_right, text, limiter=request.state.logins):
            raise HTTPException(401, "That is not the password.")
        return password.admit(JSONResponse({}))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, CapacityLimiter]]:
        to_thread.current_default_thread_limiter().total_tokens = _THREADS
        yield {"logins": CapacityLimiter(1)}  # wrong passwords wait for each other, and keep no vote waiting

    routes = [
        Route("/", index),
        Route("/static/{name}", static),
        Route("/api/about", about),
        Route("/api/login", login, methods=["POST"]),
        *site.routes,
    ]
    handlers: Any = {UserError: mistake, HTTPException: mistake}
    return Guard(Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan), password, hosts)
