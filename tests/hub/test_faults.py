"""Every fault at every endpoint: the push succeeds after a retry, or says why not, and the repository is whole."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.hub.client import TIMEOUT
from lora_dpo.hub.package import Package
from lora_dpo.hub.push import Manner, send
from lora_dpo.hub.remote import Target
from tests.hub.conftest import TOKEN
from tests.hub.faults import Fault, Kind
from tests.hub.folders import contents, model, package
from tests.hub.server import Hub

REFUSALS = (401, 403, 404, 409, 412)
PASSING = (429, 500)
KINDS: tuple[Kind, ...] = ("cut", "lost", "hang")
ON_A_NEW_ONE = ("create", "branch")
ON_ONE_THAT_IS_THERE = (
    *("whoami", "info", "auth-write", "tree", "refs", "resolve", "validate", "preupload", "batch", "upload"),
    *("verify", "commit", "tag"),
)
ENDPOINTS = (*ON_A_NEW_ONE, *ON_ONE_THAT_IS_THERE)
ARRIVED = "verify"
"""The file is there already when the Hub is asked about it, so another try has nothing to send."""
AFTER_THE_COMMIT = ("tag", "tree", "refs")


@dataclass
class Push:
    """A push of a new version to a repository that holds an older one, or to a new one."""

    hub: Hub
    target: Target
    old: dict[str, bytes]
    new: Package

    def go(self) -> None:
        send(self.target, self.new, Manner(yes=True))

    @property
    def published(self) -> dict[str, bytes]:
        repository = self.hub.repository(self.target.repo)
        there = repository.exists and self.target.revision in repository.state["branches"]
        return self.hub.files(self.target.repo, self.target.revision) if there else {}

    @property
    def is_tagged(self) -> bool:
        state = self.hub.repository(self.target.repo).state
        return state.get("tags", {}).get("v1") == state["branches"][self.target.revision]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package]:
    """An older version of a model, and a newer one of which all files but the tokenizer's are others."""
    folder = tmp_path_factory.mktemp("versions")
    old, new = model(folder / "old", value=1.0), model(folder / "new", value=2.0, shards=2, name="new")
    return package(old, licence="mit"), package(new, licence="apache-2.0")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the Hub's folder is kept once the older version is there."""
    return tmp_path_factory.mktemp("published") / "hub"


@pytest.fixture
def push(hub: Hub, versions: tuple[Package, Package], published: Path, monkeypatch: pytest.MonkeyPatch):
    """Returns a function that gets a push ready whose waits take no time."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv(TIMEOUT, "600")

    then, now = versions

    def ready(*, new: bool) -> Push:
        if new:
            return Push(hub, Target("me/model", "model", True, "dev", "v1"), {}, now)
        if published.is_dir():
            shutil.copytree(published, hub.folder, dirs_exist_ok=True)
        else:
            send(Target("me/model", "model", True), then, Manner(yes=True))
            shutil.copytree(hub.folder, published)
        hub.requests.clear()
        return Push(hub, Target("me/model", "model", True, tag="v1"), contents(then), now)

    return ready


def check(push: Push, fault: Fault, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> bool:
    """Pushes under a fault, then without it; returns whether the first push succeeded."""
    caplog.set_level("DEBUG", "lora_dpo")
    push.hub.faults = [fault]
    said, succeeded = "", True
    try:
        push.go()
    except UserError as error:
        said, succeeded = str(error), False
    assert fault.endpoint in push.hub.requests, "it was never called"
    whole = contents(push.new)
    if succeeded:
        assert push.published == whole
        assert push.is_tagged
    else:
        assert push.published in (push.old, whole, {})
        assert push.published != {} or not push.old
        assert push.published != whole or fault.endpoint in AFTER_THE_COMMIT or fault.kind != "status"
        assert len(said.splitlines()) >= 1
        assert said[0].isupper() or said[0].islower()
    captured = capfd.readouterr()
    seen = said + captured.out + captured.err + caplog.text
    assert TOKEN not in seen
    assert TOKEN[:12] not in seen
    assert "signature=" not in seen
    push.hub.faults = []
    push.go()
    assert push.published == whole
    assert push.is_tagged
    return succeeded


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_refusal(push, endpoint: str, status: int, capfd, caplog) -> None:
    # A careless server repeats the token in its answer.
    fault = Fault(endpoint, status=status, times=-1, message=f"no, {TOKEN}!")
    check(push(new=endpoint in ON_A_NEW_ONE), fault, capfd, caplog)


@pytest.mark.parametrize("times", [1, -1], ids=["once", "always"])
@pytest.mark.parametrize("status", PASSING)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_what_may_pass(push, endpoint: str, status: int, times: int, capfd, caplog) -> None:
    fault = Fault(endpoint, status=status, times=times, retry_after=3 if status == 429 else None, message=TOKEN)
    succeeded = check(push(new=endpoint in ON_A_NEW_ONE), fault, capfd, caplog)
    assert succeeded == (times == 1) or endpoint == ARRIVED


@pytest.mark.parametrize("times", [1, -1], ids=["once", "always"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_bad_line(
    push, endpoint: str, kind: Kind, times: int, capfd, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = push(new=endpoint in ON_A_NEW_ONE)
    with monkeypatch.context() as patched:
        if kind == "hang":
            patched.setenv(TIMEOUT, "1")
        succeeded = check(ready, Fault(endpoint, kind, times=times), capfd, caplog)
    assert succeeded == (times == 1) or kind == "lost" or endpoint == ARRIVED


@pytest.mark.parametrize("times", [1, -1], ids=["once", "always"])
@pytest.mark.parametrize("endpoint", ["upload", "tree"])
def test_a_wrong_hash(push, endpoint: str, times: int, capfd, caplog) -> None:
    succeeded = check(push(new=False), Fault(endpoint, "wrong hash", times=times), capfd, caplog)
    assert succeeded == (times == 1)


def test_a_second_push_sends_only_what_had_not_arrived(push) -> None:
    ready = push(new=False)
    ready.hub.uploaded.clear()
    ready.hub.faults = [Fault("upload", status=403, times=-1, skip=1)]
    with pytest.raises(UserError, match="The token may not do this"):
        ready.go()
    assert ready.published == ready.old
    arrived = len(ready.hub.uploaded)
    assert arrived == 1
    ready.hub.faults = []
    ready.go()
    assert len(ready.hub.uploaded) == 2
    assert len(set(ready.hub.uploaded)) == 2


@dataclass
class Meddling(Fault):
    """Is no fault: just before a request somebody else makes a commit."""

    hub: Hub | None = None

    def strikes(self, endpoint: str) -> bool:
        if super().strikes(endpoint):
            repository = self.hub.repository("me/model")
            files = {**repository.files("main"), "notes.txt": repository.put_blob(b"mine")}
            repository.commit("main", "theirs", files, repository.head("main"))
        return False


def test_somebody_else_commits_in_between(push) -> None:
    ready = push(new=False)
    ready.hub.faults = [Meddling("commit", hub=ready.hub)]
    with pytest.raises(UserError, match="Somebody else has changed me/model in the meantime"):
        ready.go()
    assert ready.published == {**ready.old, "notes.txt": b"mine"}
    ready.go()
    assert ready.published == {**contents(ready.new), "notes.txt": b"mine"}


def test_our_commit_is_found_below_somebody_elses(push) -> None:
    ready = push(new=False)
    ready.hub.faults = [Fault("commit", "lost"), Meddling("commits", hub=ready.hub)]
    ready.go()
    assert ready.published == {**contents(ready.new), "notes.txt": b"mine"}
    repository = ready.hub.repository("me/model")
    titles = [commit["title"] for commit in repository.log("main")]
    assert titles[:2] == ["theirs", "Publish a model with lora-dpo"]
    assert repository.state["tags"]["v1"] == repository.log("main")[1]["id"]


def test_a_commit_that_left_our_stale_files_is_not_ours(push) -> None:
    ready = push(new=False)

    @dataclass
    class Adding(Meddling):
        """Somebody else publishes the same files, and leaves the old ones."""

        def strikes(self, endpoint: str) -> bool:
            if Fault.strikes(self, endpoint):
                repository = self.hub.repository("me/model")
                files = repository.files("main")
                for file in ready.new.files:
                    if file.path.endswith(".safetensors"):
                        files[file.path] = repository.lfs_entry(file.sha256, file.size)
                    else:
                        files[file.path] = repository.put_blob(file.read())
                repository.commit("main", "theirs", files, repository.head("main"))
            return False

    ready.hub.faults = [Adding("commit", hub=ready.hub)]
    with pytest.raises(UserError, match="Somebody else has changed me/model in the meantime"):
        ready.go()


def test_a_lost_answer_and_a_hub_that_is_gone_do_not_claim_that_nothing_was_published(push) -> None:
    ready = push(new=False)
    ready.hub.faults = [Fault("commit", "lost"), Fault("commits", status=500, times=-1)]
    with pytest.raises(UserError, match="it is not known whether me/model has it") as refused:
        ready.go()
    assert "Nothing of this push" not in str(refused.value)
    assert ready.published == contents(ready.new)


def test_a_tag_that_fails_says_that_the_model_is_published(push) -> None:
    ready = push(new=False)
    ready.hub.faults = [Fault("tag", status=403, times=-1)]
    with pytest.raises(UserError, match="All files are published, as version") as refused:
        ready.go()
    assert "only the tag is missing" in str(refused.value)


@pytest.mark.parametrize(
    ("headers", "retry_after", "expected"),
    [({"ratelimit": '"api";r=0;t=55'}, None, [55.0]), ({}, 7, [7.0]), ({}, None, [1.0])],
)
def test_the_commit_waits_as_long_as_the_hub_asks(
    push, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], retry_after: int | None, expected: list[float]
) -> None:
    ready, waits = push(new=False), []
    monkeypatch.setattr(time, "sleep", waits.append)
    ready.hub.faults = [Fault("commit", status=429, retry_after=retry_after, headers=headers)]
    ready.go()
    assert waits == expected
    assert ready.published == contents(ready.new)


def test_a_gitignore_on_the_hub_does_not_make_half_a_model(push) -> None:
    ready = push(new=False)
    repository = ready.hub.repository("me/model")
    ignoring = {**repository.files("main"), ".gitignore": repository.put_blob(b"*.safetensors\n")}
    repository.commit("main", "ignore", ignoring, repository.head("main"))
    with pytest.raises(UserError, match=r"The \.gitignore of me/model keeps files of this push out: model-00001"):
        ready.go()
    assert "commit" not in ready.hub.requests
    assert ready.published == ready.old
