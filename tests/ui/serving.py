"""Pages that are served: in this process, by a thread; or by a process of its own, which can be killed."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_dpo.ui.web.app import Site, application
from lora_dpo.ui.web.guard import LOOPBACK, Password
from lora_dpo.ui.web.serve import server_of
from tests.process import PATIENCE, ROOT


class Client:
    """Somebody who talks to a server.

    Args:
        port: Where it is, on this machine.
        query: What the address ends with, which opens the page; the empty text knocks at a closed one.
    """

    def __init__(self, port: int, query: str = "") -> None:
        self.port, self.query = port, query
        self.cookie = ""

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}/{self.query}"

    def enter(self) -> Client:
        """Trades the token of the address for the cookie, as a browser does."""
        status, headers, _ = self.raw("GET", f"/{self.query}")
        assert (status, headers["location"]) == (303, "./")
        self.cookie = headers["set-cookie"].partition(";")[0]
        return self

    def raw(
        self, method: str, path: str, body: bytes | str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Returns status, headers and body of an answer."""
        connection = http.client.HTTPConnection("localhost", self.port, timeout=300)
        sent = {"Cookie": self.cookie} if self.cookie else {}
        sent |= {"Content-Type": "application/json"} if body is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def send(self, path: str, **values: Any) -> dict[str, Any]:
        """Posts JSON; the status comes with the answer."""
        status, _, body = self.raw("POST", path, json.dumps(values))
        return {"status": status, **json.loads(body)}

    def events(self, path: str, **values: Any) -> list[dict[str, Any]]:
        """Posts JSON, and returns the objects that are streamed."""
        status, _, body = self.raw("POST", path, json.dumps(values))
        assert status == 200, body
        return [json.loads(line) for line in body.split(b"\n")[:-1]]


@contextmanager
def served(site: Site, password: str | None = None, hosts: frozenset[str] | None = LOOPBACK) -> Iterator[Client]:
    """Serves a page by a thread of this process; without a password, the client has come by the token."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    asked = Password(password, port)
    server = server_of(application(site, asked, hosts))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        client = Client(port, asked.query)
        yield client.enter() if asked.query else client
    finally:
        server.should_exit = True
        thread.join()


class Server:
    """`lora-dpo WORDS --web` in a process of its own.

    Args:
        cwd: Its working directory.
        words: What is typed.
    """

    def __init__(self, cwd: Path, *words: str) -> None:
        self._cwd, self._words = cwd, words
        self.process: subprocess.Popen[str] | None = None
        self.port = 0
        self.client = Client(0)
        self.start()

    def start(self) -> None:
        """Starts it, at the port where it was before."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", "TERM": "dumb"}
        command = [sys.executable, "-m", "lora_dpo", *self._words, "--web", "--port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=self._cwd, env=env, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"http://localhost:(\d+)/(\?token=[0-9a-f]{48})\n", line)
        assert found is not None, line
        self.port = int(found[1])
        self.client = Client(self.port, found[2])
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                self.client.enter()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        """Ends it as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
