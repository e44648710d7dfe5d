"""Votes, a training, more votes, and a training that goes on from the first: real ones of a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_dpo.data.manifest import read_pairs
from lora_dpo.model.hashes import weights_hash
from lora_dpo.pipeline import align
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.stages import stage_recipe
from lora_dpo.ui.store import Store
from tests.small import small_recipe
from tests.ui.votes import draft, vote

GOOD = "Yes, and that is well known."


def collected(store: Store, first: int, last: int) -> None:
    for number in range(first, last):
        store.add(vote(draft(f"Is {number} a number?", GOOD, "No."), prefers=GOOD))


@pytest.mark.slow
def test_a_session_goes_on_from_the_last_one_and_holds_out_what_it_held_out(tiny_models, tmp_path: Path) -> None:
    store = Store(tmp_path / "prefs.jsonl")
    recipe = small_recipe(
        tiny_models("llama"),
        tmp_path / "runs",
        adapter={"init_from": "auto"},
        data={"path": str(store.path), "split": {"test": 0.25, "validation": 0.0}},
        evaluation={"samples": 0},
    )
    collected(store, 0, 12)
    first = RunFolder(align(stage_recipe(recipe, "dpo")))
    before = first.report_json.read_bytes()
    assert first.path.name == "small"
    assert align(stage_recipe(recipe, "dpo")) == first.path  # nothing is new
    assert first.report_json.read_bytes() == before

    collected(store, 12, 24)
    store.undo("ann")
    second = RunFolder(align(stage_recipe(recipe, "dpo")))
    assert second.path.name == "small-2"
    assert first.report_json.read_bytes() == before
    (parent,) = json.loads(second.provenance.read_text())["parents"]
    assert parent["weights_sha256"] == weights_hash(str(first.adapter), None)
    assert weights_hash(str(second.adapter), None) != parent["weights_sha256"]
    old, new = (read_pairs(run.data / "pairs.jsonl") for run in (first, second))
    for side in ("train", "test"):
        assert {pair.group for pair in old[side]} <= {pair.group for pair in new[side]}
    assert (len(new["train"]), len(new["test"])) == (17, 6)
    assert all(pair.chosen == GOOD for pair in new["train"])
    assert align(stage_recipe(recipe, "dpo")) == second.path
