"""`lora-dpo push` against a Hub: what is asked first, what is shown, and what happens the second time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants

from lora_dpo.errors import UserError
from lora_dpo.hub.client import TIMEOUT
from lora_dpo.hub.packing import Wishes
from lora_dpo.hub.push import Manner, push, send
from lora_dpo.hub.remote import Target
from lora_dpo.recipe.schema import HubSection
from tests.hub.conftest import READER, TOKEN
from tests.hub.folders import adapter, contents, model, package
from tests.hub.server import Hub

YES = Manner(yes=True)
WRITING = {"create", "preupload", "batch", "upload", "verify", "commit", "tag", "branch"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder, `model` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return model(Path("model"))


def refusal(hub: Hub, *words: str, manner: Manner = YES, **wishes) -> str:
    """Pushes what must be refused; returns why, once it is seen that nothing was written."""
    hub.requests.clear()
    with pytest.raises(UserError) as refused:
        push(words[0] if words else "model", words[1] if len(words) > 1 else "me/model", Wishes(**wishes), manner)
    assert not WRITING & set(hub.requests)
    return str(refused.value)


def test_publishes_everything_in_one_commit_with_its_tag(hub: Hub, folder: Path, capsys) -> None:
    push("model", "me/model", Wishes(tag="v1"), YES)
    assert hub.files("me/model") == contents(package(folder))
    repository = hub.repository("me/model")
    assert repository.state["tags"]["v1"] == repository.head("main")
    assert [commit["title"] for commit in repository.log("main")] == [
        "Publish a model with lora-dpo",
        "initial commit",
    ]
    assert repository.state["private"] is True
    captured = capsys.readouterr()
    assert captured.out == f"{hub.url}/me/model  version {repository.head('main')[:8]}\n"
    assert "model.safetensors" in captured.err
    assert "To me/model, tag v1: will be made, private." in captured.err


def test_a_second_push_does_nothing_and_a_third_sends_what_is_new(hub: Hub, folder: Path, capsys) -> None:
    push("model", "me/model", Wishes(), YES)
    hub.requests.clear()
    capsys.readouterr()
    push("model", "me/model", Wishes(), Manner())  # nothing is asked where nothing is to be done
    assert not WRITING & set(hub.requests)
    assert "there is nothing to do" in capsys.readouterr().err
    push("model", "me/model", Wishes(tag="v1"), YES)
    assert [name for name in hub.requests if name in WRITING] == ["tag"]
    (folder / "extra.txt").write_text("new")
    hub.requests.clear()
    push("model", "me/model", Wishes(), YES)
    assert [name for name in hub.requests if name in WRITING] == ["preupload", "commit"]
    assert hub.files("me/model")["extra.txt"] == b"new"


def test_files_of_an_earlier_push_go_and_other_files_stay(hub: Hub, folder: Path) -> None:
    model(Path("model"), shards=2)
    (folder / "model.safetensors").unlink()
    push("model", "me/model", Wishes(), YES)
    operations = [CommitOperationAdd("notes.txt", b"mine")]
    HfApi(token=TOKEN).create_commit("me/model", operations, commit_message="by hand")
    for file in folder.glob("model-*"):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    model(folder, value=3.0)
    push("model", "me/model", Wishes(), YES)
    assert hub.files("me/model") == {**contents(package(folder)), "notes.txt": b"mine"}


def test_another_models_files_are_not_mixed_with_ours(hub: Hub, folder: Path) -> None:
    push("model", "me/model", Wishes(), YES)
    adapter(Path("adapter"))
    # By its manifest an adapter may take the place of a model, whole.
    push("adapter", "me/model", Wishes(), YES)
    assert hub.files("me/model") == contents(package(Path("adapter")))
    HfApi(token=TOKEN).create_repo("me/other")
    HfApi(token=TOKEN).create_commit("me/other", [CommitOperationAdd("model.gguf", b"x")], commit_message="by hand")
    assert "me/other holds files of another model: model.gguf" in refusal(hub, "model", "me/other")


def test_a_dry_run_changes_nothing(hub: Hub, folder: Path, capsys) -> None:
    push("model", "me/model", Wishes(tag="v1"), Manner(dry_run=True))
    assert not WRITING & set(hub.requests)
    assert "A dry run: nothing was published." in capsys.readouterr().err


def test_a_branch_is_made_and_main_left_alone(hub: Hub, folder: Path) -> None:
    push("model", "me/model", Wishes(private=False, revision="dev", tag="v1"), YES)
    assert hub.files("me/model", "main") == {}
    assert hub.files("me/model", "dev") == contents(package(folder))
    assert hub.repository("me/model").state["private"] is False
    hub.requests.clear()
    push("model", "me/model", Wishes(revision="dev", tag="v1"), YES)
    assert not WRITING & set(hub.requests)


def test_nobody_to_ask(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Add --yes." in refusal(hub, manner=Manner())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *words, **options: False)
    assert "Nothing was published." in refusal(hub, manner=Manner())
    monkeypatch.setattr("typer.confirm", lambda *words, **options: True)
    push("model", "me/model", Wishes(), Manner())
    assert hub.files("me/model") != {}


def test_tokens_that_are_none_or_may_not(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    said = refusal(hub)
    assert "The token of me may only read." in said
    assert READER not in said
    monkeypatch.setenv("HF_TOKEN", "hf_" + "unknown1" * 4)
    said = refusal(hub)
    assert "The Hub does not accept the token." in said
    assert "unknown1" not in said
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("lora_dpo.hub.preflight.get_token", lambda: None)
    assert "There is no Hub token" in refusal(hub)


def test_a_token_that_says_write_but_may_not_change_this_repository(hub: Hub, folder: Path) -> None:
    from tests.hub.faults import Fault

    HfApi(token=TOKEN).create_repo("me/model")
    hub.faults = [Fault("auth-write", status=403)]
    assert "asking whether me/model may be changed: 403" in refusal(hub)


def test_the_token_may_be_in_a_file(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    Path(".env").write_text(f"ACCESS_TOKEN={TOKEN}\n")
    push("model", "me/model", Wishes(), YES)
    assert hub.files("me/model") != {}
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # so that what load_token has set goes with the test


@pytest.mark.parametrize(
    ("repo", "words"),
    [
        ("model", "Did you mean 'YOUR_NAME/model'?"),
        ("me/mo del", "cannot be a repository on the Hub"),
        ("me/a--b", "cannot be a repository on the Hub"),
        ("me/model-", "cannot be a repository on the Hub"),
        ("me/model.", "cannot be a repository on the Hub"),
        ("me/modèle", "cannot be a repository on the Hub"),
        ("me/" + "m" * 97, "cannot be a repository on the Hub"),
        ("you/model", "me may not publish as you."),
    ],
)
def test_names_that_cannot_be(hub: Hub, folder: Path, repo: str, words: str) -> None:
    assert words in refusal(hub, "model", repo)


def test_organisations_and_tags(hub: Hub, folder: Path) -> None:
    push("model", "lab/model", Wishes(tag="v1"), YES)
    assert hub.files("lab/model") != {}
    model(folder, value=2.0)
    assert "The tag v1 of lab/model is on another version" in refusal(hub, "model", "lab/model", tag="v1")
    assert "--tag 'a b' cannot be a name in git" in refusal(hub, tag="a b")


def test_offline(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "lora-dpo push --prepare" in refusal(hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.stop()
    assert "cannot be reached" in refusal(hub)


@pytest.mark.parametrize("text", ["soon", "inf", "nan", "-1", "0", "1e9"])
def test_the_timeout_is_the_users(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(TIMEOUT, text)
    assert f"{TIMEOUT} is '{text}', which is no number of seconds that could be waited." in refusal(hub)


def test_an_address_without_a_scheme_and_a_token_that_is_none(hub: Hub, folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ü")
    said = refusal(hub)
    assert "The Hub token holds characters that no token has." in said
    assert "ü" not in said
    monkeypatch.setattr(constants, "ENDPOINT", "hub.example.org")
    assert "HF_ENDPOINT is 'hub.example.org', which is no address." in refusal(hub)


def test_the_hub_is_asked_for_the_base(hub: Hub, folder: Path) -> None:
    from tests.hub.faults import Fault

    adapter(Path("adapter"), "orgg/base")
    said = refusal(hub, "adapter", "me/adapter")
    assert "The base model orgg/base is not on the Hub, or this token may not see it." in said
    assert "Did you mean 'org/base'?" in said
    assert "Did you mean 'org/base'?" in refusal(hub, "adapter", "me/adapter", base="org/basse")
    assert "Did you mean" not in refusal(hub, "adapter", "me/adapter", base="nobody/nothing-like-it")
    for status in (401, 403):  # a gated one is there
        hub.faults = [Fault("info", status=status, skip=1)]
        push("adapter", f"me/gated-{status}", Wishes(), YES)
        assert hub.faults[0].times == 0
        assert hub.files(f"me/gated-{status}") != {}


def test_who_may_see_it_is_not_passed_over(hub: Hub, folder: Path) -> None:
    push("model", "me/open", Wishes(private=False), YES)
    push("model", "me/closed", Wishes(private=True), YES)
    assert "me/open is public already, and --private does not change that." in refusal(
        hub, "model", "me/open", private=True
    )
    assert "me/closed is private already, and --public does not" in refusal(hub, "model", "me/closed", private=False)
    push("model", "me/open", Wishes(), YES)  # what only the recipe says is for a new one
    push("model", "me/open", Wishes(private=False), YES)


def test_a_card_that_the_hub_does_not_take_makes_no_repository(hub: Hub, folder: Path) -> None:
    from tests.hub.faults import Fault

    Path("card.md").write_text("---\nlicense: [x\n---\n")
    assert "The card's metadata cannot be read" in refusal(hub, template="card.md")
    hub.faults = [Fault("validate", status=400, message="no such thing")]
    assert "The Hub does not take the card's metadata" in refusal(hub)
    assert not hub.repository("me/model").exists


def edit(repo: str, card: bytes) -> None:
    """Writes a card as somebody does on the Hub's page."""
    operations = [CommitOperationAdd("README.md", card)]
    HfApi(token=TOKEN).create_commit(repo, operations, commit_message="by hand")


def test_a_card_that_was_edited_on_the_hub_is_kept(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push("model", "me/model", Wishes(), YES)
    edit("me/model", b"---\nlicense: mit\n---\n# Mine\n")
    said = refusal(hub)
    assert "The card of me/model was written by somebody on the Hub, and would be lost." in said
    assert "--template README.md" in said
    Path("mine.md").write_text("# Mine\n")
    push("model", "me/model", Wishes(template="mine.md"), YES)
    assert hub.files("me/model")["README.md"] == b"# Mine\n"
    edit("me/model", b"# Mine as well\n")
    push("model", "me/model", Wishes(), Manner(yes=True, overwrite_card=True))
    assert hub.files("me/model") == contents(package(folder))
    for repo, card in (("me/new", b"---\nlicense: mit\n---\n"), ("me/old", b"# Mine\n")):
        HfApi(token=TOKEN).create_repo(repo)
        edit(repo, card)
    push("model", "me/new", Wishes(), YES)  # metadata alone, as the Hub writes it into a new repository
    assert "written by somebody" in refusal(hub, "model", "me/old")


def test_the_recipes_section_says_where_and_how(hub: Hub, folder: Path) -> None:
    section = HubSection(repo="me/named", private=False, tag="v2", license="mit")
    push("model", section.repo, Wishes(), YES, section)
    assert set(hub.repository("me/named").state["tags"]) == {"v2"}
    assert hub.repository("me/named").state["private"] is False
    assert b"license: mit" in hub.files("me/named")["README.md"]
    with pytest.raises(UserError, match="It is not said where to publish"):
        push("model", None, Wishes(), YES)


def test_a_missing_tag_is_set_by_the_next_push(hub: Hub, folder: Path) -> None:
    from tests.hub.faults import Fault

    hub.faults = [Fault("tag", status=403)]
    with pytest.raises(UserError, match="setting the tag v1"):
        push("model", "me/model", Wishes(tag="v1"), YES)
    assert hub.files("me/model") == contents(package(folder))
    send(Target("me/model", "model", True, tag="v1"), package(folder), YES)
    assert set(hub.repository("me/model").state["tags"]) == {"v1"}
