"""What `lora-dpo run` asks of a push before it trains for days."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.cluster.start import Request
from lora_dpo.errors import UserError
from lora_dpo.hub.beforehand import check_beforehand
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.run import run
from tests.hub.conftest import READER
from tests.hub.folders import model
from tests.hub.server import Hub
from tests.small import small_recipe

WRITING = {"create", "preupload", "commit", "tag", "branch"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(place: Path, *, base: str = "org/base", offline: bool = False, method: str = "lora", **hub) -> None:
    recipe = small_recipe(base, place, adapter={"method": method}, hub={"repo": "me/tuned", **hub})
    check_beforehand(recipe, offline=offline)


def refusal(place: Path, **changes) -> str:
    with pytest.raises(UserError) as refused:
        check(place, **changes)
    return str(refused.value)


def test_nothing_is_written_where_all_is_well(hub: Hub, place: Path) -> None:
    check(place)
    assert {"whoami", "info"} <= set(hub.requests)
    assert not WRITING & set(hub.requests)
    hub.repository("me/tuned").create(private=True)
    check(place)
    assert "auth-write" in hub.requests
    hub.requests.clear()
    check(place, offline=True)
    assert hub.requests == []


def test_a_token_that_may_not(hub: Hub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "me may not publish as you." in refusal(place, repo="you/tuned")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "The token of me may only read." in refusal(place)


def test_bases_and_licences(hub: Hub, place: Path) -> None:
    said = refusal(place, base="org/bass")
    assert "The base model org/bass is not on the Hub" in said
    assert "Did you mean 'org/base'?" in said
    assert "Did you mean 'org/base'?" in refusal(place, base="org/bass", base_model="orgg/base")
    assert "is no licence that the Hub knows" in refusal(place, license="apache2", offline=True)
    said = refusal(place, base="google/gemma-2-2b", license="mit", offline=True)
    assert "--license mit, but the base model is under gemma." in said
    folder = str(model(place / "base"))
    check(place, base=folder)  # a merged model may be published all the same
    assert f"The adapter's base, {folder}, is on this machine only" in refusal(place, base=folder, what="adapter")
    check(place, base=folder, what="adapter", base_model="org/base")
    assert "adapter.method full trains the whole model" in refusal(place, what="adapter", method="full")


def test_templates(hub: Hub, place: Path) -> None:
    assert "The template card.jinja cannot be read" in refusal(place, template="card.jinja", offline=True)
    Path("card.jinja").write_text("{{ nmae }}")
    assert "The template names 'nmae', which there is not." in refusal(place, template="card.jinja", offline=True)
    Path("card.jinja").write_text("{{ name }}: {{ report.verdict }}")
    check(place, template="card.jinja", offline=True)


def test_a_hub_that_is_away_does_not_hold_up_what_has_begun(hub: Hub, place: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.stop()
    assert "cannot be reached" in refusal(place)
    recipe = small_recipe("org/base", place)
    RunFolder.of(recipe).create(recipe, overwrite=False).release()
    check(place)
    assert "The run goes on all the same." in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_ü")
    assert "The Hub token holds characters" in refusal(place)


def test_a_dry_run_asks_as_well(hub: Hub, place: Path) -> None:
    Path("r.yaml").write_text("model: {name: org/base}\ndata: {path: pairs.jsonl}\nrun: {name: r}\n")
    with pytest.raises(UserError, match="The base model org/bass is not on the Hub"):
        run(Request("r.yaml", ("train.strategy=single", "hub.repo=me/x", "model.name=org/bass"), dry_run=True))
    assert not Path("runs").exists()
