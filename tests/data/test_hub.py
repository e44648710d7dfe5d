"""`datasets` itself, against a small hub on this machine and against none.

The Hub client reads its endpoint when it is imported, so the loading happens in processes of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

from lora_dpo.data.hub import hub_rows
from lora_dpo.errors import UserError

REPOSITORY = Path(__file__).parents[2]
COMMIT = "a" * 40
LOAD = """
import json, sys
from lora_dpo.data.hub import hub_rows
from lora_dpo.errors import UserError
for case in json.loads(sys.argv[1]):
    try:
        print(json.dumps([[row.where, row.values["prompt"]] for row in hub_rows(*case)]))
    except UserError as error:
        print(json.dumps(str(error)))
"""
CARD = """---
configs:
- config_name: one
  data_files: [{split: train, path: one.jsonl}]
- config_name: two
  data_files: [{split: validation, path: two.jsonl}, {split: test, path: one.jsonl}]
---
"""


class HubHandler(BaseHTTPRequestHandler):
    """Serves the folder `server.root` as the data set org/pairs; org/secret is gated."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        root: Path = self.server.root
        path = unquote(urlsplit(self.path).path)
        files = {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.iterdir())}
        if "org/secret" in path:
            self.answer(403, **{"X-Error-Code": "GatedRepo"})
        elif path.startswith("/datasets/org/pairs/resolve/"):
            content = files.get(path.split("/", 6)[6])
            if content is None:
                self.answer(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                self.answer(200, content, **{"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        elif path.startswith("/api/datasets/org/pairs/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            self.answer(200, json.dumps(entries).encode(), **{"Content-Type": "application/json"})
        elif path.startswith("/api/datasets/org/pairs"):
            info = {"id": "org/pairs", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            self.answer(200, json.dumps(info).encode(), **{"Content-Type": "application/json"})
        else:
            self.answer(404, **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815 (http.server calls it by this name)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def load(cases: list, home: Path, **environment: str) -> list:
    """Returns, for each case, its rows or the words of its error."""
    values = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **environment}
    command = [sys.executable, "-c", LOAD, json.dumps(cases)]
    done = subprocess.run(command, env=values, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder as a data set repository has it: two configurations, one with two splits."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    for name in ("one", "two"):
        row = {"prompt": f"prompt {name}", "chosen": "a", "rejected": "b"}
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def endpoint(repository: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.root = repository
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_hub_data_set_and_its_cache(endpoint, tmp_path):
    cases = [["org/pairs", "one", None], ["org/pairs", "two", "validation"]]
    expected = [[["org/pairs [train], row 1", "prompt one"]], [["org/pairs [validation], row 1", "prompt two"]]]
    assert load(cases, tmp_path, HF_ENDPOINT=endpoint) == expected
    assert load(cases, tmp_path, HF_HUB_OFFLINE="1") == expected
    assert load(cases, tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == expected
    (uncached,) = load([["org/pairs", "thre", None]], tmp_path, HF_HUB_OFFLINE="1")
    assert "load_dataset('org/pairs', 'thre')" in uncached


def test_what_the_hub_does_not_have(endpoint, tmp_path):
    cases = [
        ["org/pairs", "tow", None],
        ["org/pairs", None, None],
        ["org/pairs", "two", "tests"],
        ["org/nothing", None, None],
        ["org/secret", None, None],
    ]
    config, several, split, unknown, gated = load(cases, tmp_path, HF_ENDPOINT=endpoint)
    assert "the data set org/pairs has no configuration 'tow'\nIts configurations: one, two.\n" in config
    assert config.endswith("Did you mean 'two'?")
    assert "org/pairs has several configurations\nIts configurations: one, two.\n" in several
    assert "data.path: [{path: org/pairs, subset: one}]" in several
    assert "the data set org/pairs has no split 'tests'\nIts splits: validation, test.\n" in split
    assert split.endswith("Did you mean 'test'?")
    assert "there is no data set org/nothing on the Hub, or it is private" in unknown
    assert "the data set org/secret is gated" in gated
    assert "ACCESS_TOKEN" in gated


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_no_network_is_said(tmp_path, environment):
    (message,) = load([["Anthropic/hh-rlhf", None, None]], tmp_path, **environment)
    assert message.startswith(
        "data.path: the data set Anthropic/hh-rlhf is not in the local cache, and the Hugging Face Hub"
    )
    assert "load_dataset('Anthropic/hh-rlhf')" in message
    assert "hf download --repo-type dataset Anthropic/hh-rlhf --local-dir hh-rlhf" in message
    assert "HF_HUB_OFFLINE=1" in message


def test_a_silent_server_does_not_hang(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (message,) = load(
            [["org/pairs", None, None]], tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
    assert "the Hugging Face Hub cannot be reached" in message


def test_usual_configuration_is_part_of_the_advice(tmp_path):
    (message,) = load([["truthfulqa/truthful_qa", None, None]], tmp_path, HF_HUB_OFFLINE="1")
    assert "load_dataset('truthfulqa/truthful_qa', 'generation')" in message
    assert "data.path: [{path: truthful_qa, subset: generation, hub_split: validation}]" in message


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("own_cache")
def test_downloaded_repository(repository):
    rows = list(hub_rows(str(repository), "two", "validation"))
    assert [(row.values["prompt"], row.where) for row in rows] == [("prompt two", f"{repository} [validation], row 1")]
    with pytest.raises(UserError, match="has no split 'train'"):
        hub_rows(str(repository), "two", None)
    with pytest.raises(UserError, match="has no configuration 'x'"):
        hub_rows(str(repository), "x", None)


@pytest.mark.usefixtures("own_cache")
def test_damaged_repository(repository):
    (repository / "one.jsonl").write_text('{"prompt": \n')
    with pytest.raises(UserError) as caught:
        hub_rows(str(repository), "one", None)
    assert f"the data set {repository} cannot be read" in str(caught.value)
