"""What can go wrong at an endpoint of the local Hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["status", "cut", "lost", "hang", "wrong hash"]


@dataclass
class Fault:
    """One fault, at one endpoint.

    Attributes:
        endpoint: The endpoint's name, one of `server.ENDPOINTS`; `*` is every one.
        kind: `status`: it answers with an error; `cut`: the connection ends in the middle of the body, of the request
            where it has one, else of the answer; `lost`: it does what was asked and never says so; `hang`: it says
            nothing; `wrong hash`: what arrives or is listed is not what was sent.
        status: The error's status.
        times: How often it strikes; -1 is always.
        retry_after: Seconds that the answer asks to wait.
        skip: How many requests go well before.
        code: The Hub's X-Error-Code.
        message: What the server says, such as a token that it repeats.
        headers: Further headers of the answer.
    """

    endpoint: str
    kind: Kind = "status"
    status: int = 500
    times: int = 1
    retry_after: int | None = None
    skip: int = 0
    code: str = ""
    message: str = "injected"
    headers: dict[str, str] = field(default_factory=dict)

    def strikes(self, endpoint: str) -> bool:
        """Returns whether it strikes this request; it is then used up by one."""
        if self.endpoint not in ("*", endpoint) or self.times == 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True
