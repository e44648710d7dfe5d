"""What is published of runs and folders, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lora_dpo.errors import UserError
from lora_dpo.files import write_json
from lora_dpo.hub.packing import Wishes
from lora_dpo.hub.subject import find_subject
from lora_dpo.model.made_of import is_made_of
from lora_dpo.recipe.run_folder import RunFolder
from tests.hub.folders import adapter, contents, model, package, part_of


def test_a_folder_travels_with_a_card_and_a_manifest_of_all_else(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "README.md").write_text("what PEFT writes")
    packed = package(folder)
    files = contents(packed)
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    assert files["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    assert b"what PEFT writes" not in files["README.md"]
    listed = json.loads(files["manifest.json"])["files"]
    assert listed == {
        file.path: {"size": file.size, "sha256": file.sha256} for file in packed.files if file.path != "manifest.json"
    }
    assert "There is no report, so the card has no results." in packed.remarks


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    assert contents(package(folder)) == contents(package(folder))


def test_an_adapter_whose_base_nobody_else_has_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", base="/models/base")
    with pytest.raises(UserError, match="The adapter's base, /models/base, is on this machine only"):
        package(folder)
    files = contents(package(folder, base="org/base"))
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert b"/models" not in b"".join(files.values())


def test_names_of_a_base_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = adapter(tmp_path / "a", base="models/base")
    for word in ("not a name", "/some/where/base", "./base", "a/b/c"):
        with pytest.raises(UserError, match=f"--base-model '{word}' is no name that the Hub could have"):
            package(folder, base=word)
    # By its form it may be the Hub's, which is asked; where the folder is, it is known to be none of the Hub's.
    assert package(folder).base == "models/base"
    model(tmp_path / "models" / "base")
    with pytest.raises(UserError, match="The adapter's base, models/base, is on this machine only"):
        package(folder)
    assert package(folder, base="org/base").base == "org/base"
    config = json.loads((folder / "adapter_config.json").read_text())
    write_json(folder / "adapter_config.json", {**config, "revision": "a" * 40})
    assert package(folder).base == "models/base"


def test_what_has_no_tokenizer_says_so_or_is_refused(tmp_path: Path) -> None:
    assert "so the card takes that of org/base" in " ".join(package(adapter(tmp_path / "a")).remarks)
    folder = model(tmp_path / "m")
    assert "tokenizer" not in " ".join(package(folder).remarks)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer, so nobody could use what is published"):
        package(folder)
    assert "so the card takes that of org/base" in " ".join(package(folder, base="org/base").remarks)


def test_a_notice_in_an_older_encoding_travels_as_it_is(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "NOTICE.md").write_bytes("Grüße".encode("latin-1"))
    assert contents(package(folder))["NOTICE.md"] == "Grüße".encode("latin-1")


def test_a_card_of_ones_own_is_listed_and_published_as_a_template(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "README.md").write_text("# By hand\n")
    packed = package(folder)
    assert (packed.left_out, packed.overwrites_card) == (["README.md"], False)
    packed = package(folder, template=str(folder / "README.md"))
    assert (contents(packed)["README.md"], packed.overwrites_card) == (b"# By hand\n", True)


def test_a_path_that_is_not_ours_to_shorten_is_refused_with_its_line(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "modeling.py").write_text("import os\nDATA = '/home/ada/data.csv'\n")
    with pytest.raises(UserError, match=r"modeling\.py:2: a path of this machine \(/home/ada/data.csv\)"):
        package(folder)


def test_a_token_in_a_file_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", note="secret-word")
    with pytest.raises(UserError, match=r"config\.json:3: your token"):
        package(folder, token="secret-word")


@pytest.mark.slow
def test_a_run_takes_its_report_and_pictures_along_and_no_path(trained: RunFolder, tmp_path: Path) -> None:
    packed = package(trained.path, base="org/base", licence="mit")
    files = contents(packed)
    assert packed.kind == "adapter"
    assert {"training/recipe.yaml", "training/report.json", "training/report.md", "provenance.json"} <= set(files)
    assert {"training/plots/evaluation.png", "training/plots/training.png"} <= set(files)
    assert not any("pairs" in path or "checkpoint" in path or "metrics" in path for path in files)
    text = b"".join(content for path, content in files.items() if not path.endswith((".png", ".safetensors")))
    assert trained.load_recipe().model.name.encode() not in text
    assert str(tmp_path.parent).encode() not in text
    recipe = yaml.safe_load(files["training/recipe.yaml"])
    assert recipe["model"]["name"] == "org/base"
    assert recipe["run"]["folder"] == trained.load_recipe().run.folder.rpartition("/")[2]
    assert json.loads(files["provenance.json"])["model"]["name"] == "org/base"
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert b"](../provenance.json)" in files["training/report.md"]
    head = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert head["base_model"] == "org/base"
    assert head["base_model_relation"] == "adapter"
    assert head["license"] == "mit"


@pytest.mark.slow
def test_what_of_a_run_is_taken(trained: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(trained.path)
    found = find_subject(run, None)
    assert (found.kind, found.folder) == ("adapter", trained.adapter)
    assert "there is no merged model in runs/small" in capsys.readouterr().err
    with pytest.raises(UserError, match="runs/small has no merged model"):
        find_subject(run, "merged")
    own = json.loads((trained.adapter / "provenance.json").read_text())
    other = {"stage": "merge", "model": own["model"], "adapters": [{"weights_sha256": "0" * 64, "provenance": own}]}
    model(trained.merged)
    for stranger in (None, other, {**other, "adapters": [*other["adapters"], part_of(own)]}):
        if stranger is not None:
            write_json(trained.merged / "provenance.json", stranger)
        with pytest.raises(UserError, match="is not the model that this run has trained"):
            find_subject(run, None)
        assert find_subject(str(trained.merged), None).run is None
    write_json(trained.merged / "provenance.json", {**other, "adapters": [part_of(own)]})
    assert find_subject(run, None).folder == trained.merged
    assert find_subject(str(trained.merged), None).run is not None
    assert "--adapter takes the adapter" in capsys.readouterr().err
    assert find_subject(run, "adapter").folder == trained.adapter
    with pytest.raises(UserError, match="is a whole model, so --adapter does not go with it"):
        find_subject(str(trained.merged), "adapter")
    inside = find_subject(str(trained.adapter), None)
    assert inside.run is not None
    assert inside.run.path.resolve() == trained.path.resolve()
    checkpoint = find_subject(str(next(trained.checkpoints.glob("step-1"))), None)
    assert (checkpoint.kind, checkpoint.run) == ("adapter", None)


def test_a_stack_is_the_last_trainings_only_where_it_was_trained_upon_the_others() -> None:
    below = {"stage": "merge", "model": {"weights_sha256": "b"}, "adapters": [{"weights_sha256": "1"}]}
    upon = {"weights_sha256": "2", "model": {"weights_sha256": "m", "provenance": below}}
    beside = {"weights_sha256": "2", "model": {"weights_sha256": "b", "provenance": None}}
    stack = {"stage": "merge", "model": {"weights_sha256": "b"}}
    stack["adapters"] = [{"weights_sha256": "1"}, {"weights_sha256": "2"}]
    assert is_made_of(stack, upon) is True
    assert is_made_of(stack, beside) is False
    assert is_made_of({**stack, "model": {"weights_sha256": "other"}}, upon) is False
    assert is_made_of({**stack, "adapters": [{"weights_sha256": "2"}]}, upon) is True
    assert is_made_of({**stack, "adapters": []}, {"model": {}}) is False


@pytest.mark.slow
def test_of_a_run_that_trained_the_whole_model_there_is_no_adapter(trained: RunFolder) -> None:
    recipe = trained.recipe.read_text()
    trained.recipe.write_text(recipe.replace("method: lora", "method: full"))
    trained.adapter.rename(trained.model)
    model(trained.model)
    with pytest.raises(UserError, match="runs/small has no adapter: adapter.method full trains the whole model"):
        find_subject(str(trained.path), "adapter")
    assert find_subject(str(trained.path), "merged").folder == trained.model


@pytest.mark.slow
def test_an_unfinished_run_is_refused(trained: RunFolder) -> None:
    trained.report_json.unlink()
    with pytest.raises(UserError, match="holds no finished run"):
        find_subject(str(trained.path), None)


def test_what_is_not_there_is_named_with_what_is_near(tmp_path: Path) -> None:
    adapter(tmp_path / "first")
    with pytest.raises(UserError, match="Did you mean '.*first'"):
        find_subject(str(tmp_path / "frist"), None)


def test_the_command_line_goes_before_the_recipe() -> None:
    from lora_dpo.recipe.schema import HubSection

    hub = HubSection(repo="a/b", private=True, tag="v1", base_model="org/base", license="mit")
    completed = Wishes(private=False, tag="v2").completed(hub)
    assert (completed.private, completed.tag, completed.base, completed.licence) == (False, "v2", "org/base", "mit")
    assert Wishes().completed(hub).private is True
