from __future__ import annotations

from lora_dpo.hub.portable import is_text, shortened, shortenings


def test_paths_become_names_and_the_base_its_hub_id() -> None:
    documents = {
        "recipe": {"model": {"name": "/models/base"}, "data": {"path": ["/p/me/prefs.csv", {"path": "org/pairs"}]}},
        "record": {"arguments": ["model.name=/models/base", "run.folder=/p/me/runs", "--json"], "device": "cpu"},
        "text": {"answer": "/ is a slash", "other": "/n"},
    }
    short = shortenings(documents, "org/base", {"/models/base"})
    assert short == {"/models/base": "org/base", "/p/me/prefs.csv": "prefs.csv", "/p/me/runs": "runs"}
    text = '"model.name=/models/base", "/p/me/runs/small", "of /p/me/prefs.csv)", "/models/base2", "/p/me/runs-old"'
    assert shortened(text, short) == (
        '"model.name=org/base", "runs/small", "of prefs.csv)", "/models/base2", "/p/me/runs-old"'
    )


def test_without_a_hub_id_the_base_is_its_folders_name() -> None:
    assert shortenings({"a": "/models/base/"}, None, {"/models/base/"}) == {"/models/base/": "base"}


def test_nothing_is_shortened_in_vocabularies_and_weights() -> None:
    assert [is_text(path) for path in ("a/recipe.yaml", "tokenizer.json", "x/vocab.json", "w.safetensors")] == [
        True,
        False,
        False,
        False,
    ]


def test_paths_with_blanks_are_shortened_as_a_whole() -> None:
    documents = {"recipe": {"data": {"path": "/p/my data/prefs one.csv"}, "arguments": ["run.folder=/p/my runs"]}}
    short = shortenings(documents, None, set())
    assert short == {"/p/my data/prefs one.csv": "prefs one.csv", "/p/my runs": "my runs"}
    assert shortened('"/p/my data/prefs one.csv", "/p/my runs/small"', short) == '"prefs one.csv", "my runs/small"'
