"""What every request has to pass: the right host and origin, and the password or the token of the address."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from threading import Lock
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_dpo.ui.web.pages import page

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_OPEN = ("/static/", "/api/login")
"""Where no password is asked for."""
_SECONDS_AFTER_A_WRONG_PASSWORD = 1.0
_TOKEN_BYTES = 24
_HEADERS = {
    # Nothing from elsewhere, nothing inline: what a model writes could not run even if it got into the page.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Password:
    """A password, and the cookie that stands for it in a browser, also after the server was started again.

    Args:
        text: The password; None draws a token, which the page's address may hold: that address opens the page.
        port: Cookies of one host are shared by its ports, so each port has its own.

    Attributes:
        query: What follows the page's path in the address that is printed, or the empty text.
    """

    def __init__(self, text: str | None, port: int) -> None:
        drawn = secrets.token_hex(_TOKEN_BYTES) if text is None else ""
        text = drawn if text is None else text
        self.query = f"?token={drawn}" if drawn else ""
        self._drawn = drawn
        self.cookie = f"lora_dpo_{port}"
        self._key = hashlib.scrypt(text.encode(), salt=f"lora-dpo {port}".encode(), n=2**14, r=8, p=1, dklen=32)
        self._port = port
        self._one_at_a_time = Lock()

    def is_right(self, text: str) -> bool:
        """Returns whether this is the password; wrong ones take a second, one after the other."""
        with self._one_at_a_time:
            right = hmac.compare_digest(Password(text, self._port).token, self.token)
            if not right:
                time.sleep(_SECONDS_AFTER_A_WRONG_PASSWORD)
            return right

    def is_in(self, query: bytes) -> bool:
        """Returns whether the query of an address holds the token that was drawn."""
        found = parse_qs(query).get(b"token", [b""])[0]
        return bool(self._drawn) and hmac.compare_digest(found, self._drawn.encode())

    def admit(self, response: Response) -> Response:
        """Returns a response which gives a browser the cookie."""
        # Lax: a browser withholds a strict one where the address was clicked in a mail. Others' POSTs are refused.
        response.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
        return response

    @property
    def token(self) -> str:
        """What the cookie holds; the password does not follow from it."""
        return hmac.new(self._key, b"cookie", "sha256").hexdigest()

    def is_known(self, cookies: str) -> bool:
        """Returns whether a request's cookies have the token."""
        found = cookie_parser(cookies).get(self.cookie, "")
        return hmac.compare_digest(found.encode(), self.token.encode())


class Guard:
    """Answers requests that may not pass, and puts headers on all answers.

    Args:
        app: What is guarded.
        password: The password.
        hosts: The names that a request may ask for; None is any. A page of another site could otherwise have its own
            name lead here (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, password: Password, hosts: frozenset[str] | None) -> None:
        self._app, self._password, self._hosts = app, password, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":

            async def with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message).update(_HEADERS)
                await send(message)

            await (self._refusal(scope) or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        host = urlsplit(f"//{headers.get('host', '')}")
        if self._hosts is not None and host.hostname not in self._hosts:
            return JSONResponse({"error": "This server does not go by that name."}, 421)
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != host.netloc:
                return JSONResponse({"error": "Other sites may not send anything here."}, 403)
            if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return JSONResponse({"error": "Only JSON is taken."}, 415)
        if path == "/" and self._password.is_in(scope["query_string"]):
            return self._password.admit(RedirectResponse("./", 303))  # the token leaves the address bar
        if path.startswith(_OPEN) or self._password.is_known(headers.get("cookie", "")):
            return None
        if path.startswith("/api/"):
            return JSONResponse({"error": "The password is missing."}, 401)
        return page("login", 401)
