"""The pages' files, read once: a request's path never becomes a file's."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

Page = Literal["collect", "compare", "chat", "login"]

_TYPES = {".css": "text/css", ".js": "text/javascript"}


@cache
def _files() -> dict[str, str]:
    folder = files("lora_dpo.ui.web") / "static"
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.is_file()}


def page(name: Page, status: int = 200) -> Response:
    """Returns a page, which fills itself by its script.

    Args:
        name: Which.
        status: Of the answer.
    """
    return HTMLResponse(_files()["page.html"].replace("{{page}}", name), status)


def static(request: Request) -> Response:
    """Returns a style sheet or a script.

    Raises:
        HTTPException: There is none of this name.
    """
    name = request.path_params["name"]
    kind = _TYPES.get(name[name.rfind(".") :]) if name in _files() else None
    if kind is None:
        raise HTTPException(404, "There is no such file.")
    return Response(_files()[name], media_type=kind)
