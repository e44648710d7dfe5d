"""`lora-dpo push-data`: preferences that every reader gets back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from lora_dpo.errors import UserError
from lora_dpo.hub.dataset import pack_data, push_data
from lora_dpo.hub.push import Manner
from lora_dpo.hub.remote import Target
from tests.hub.folders import contents
from tests.hub.server import Hub
from tests.process import run_python

ROWS = [
    {"prompt": "Is glass a liquid?", "chosen": "No, a solid.", "rejected": "Yes."},
    {"prompt": "Do bats see?", "chosen": "Yes, all do.", "rejected": "No."},
    {"prompt": "Do bats see?", "chosen": "Yes, all do.", "rejected": "No."},
    {"prompt": "Why?", "chosen": "same", "rejected": "same"},
]
READ_BACK = """
from datasets import load_dataset
from lora_dpo.data.sources import load_pairs
from lora_dpo.recipe.schema import DataSection
rows = load_dataset("me/prefs", split="train").to_list()
assert [row["prompt"][0]["content"] for row in rows] == ["Is glass a liquid?", "Do bats see?"], rows
assert rows[0]["chosen"] == [{"role": "assistant", "content": "No, a solid."}]
(pairs,) = load_pairs(DataSection(path="me/prefs")).by_source
assert [(pair.chosen, pair.rejected) for pair in pairs] == [("No, a solid.", "Yes."), ("Yes, all do.", "No.")]
print("READ")
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    file = tmp_path / "prefs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(file)


def test_rows_are_conversations_and_what_teaches_nothing_is_dropped(source: str) -> None:
    packed = pack_data(source, "me/prefs", "cc-by-4.0", None)
    files = contents(packed)
    rows = [json.loads(line) for line in files["data/train.jsonl"].splitlines()]
    assert rows[1] == {
        "prompt": [{"role": "user", "content": "Do bats see?"}],
        "chosen": [{"role": "assistant", "content": "Yes, all do."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    assert len(rows) == 2
    assert packed.remarks == ["2 preferences of 2 questions.", "Dropped: 1 duplicate, 1 identical."]
    card = DatasetCard(files["README.md"].decode())
    assert (card.data.license, card.data.size_categories) == ("cc-by-4.0", "n<1K")
    assert card.data.to_dict()["configs"][0]["data_files"] == [{"split": "train", "path": "data/train.jsonl"}]
    assert "| preferences | 2 |" in card.text


def test_a_secret_in_an_answer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prefs.jsonl"
    secret = "hf_" + "s3" * 20
    file.write_text(json.dumps({"prompt": "token?", "chosen": f"it is {secret}", "rejected": "no"}) + "\n")
    with pytest.raises(UserError, match=r"data/train\.jsonl:1: a Hugging Face token") as refused:
        pack_data(str(file), "me/prefs", None, None)
    assert secret not in str(refused.value)


def test_nothing_usable(tmp_path: Path) -> None:
    file = tmp_path / "prefs.jsonl"
    file.write_text(json.dumps(ROWS[3]) + "\n")
    with pytest.raises(UserError, match="holds no usable preference"):
        pack_data(str(file), "me/prefs", None, None)


@pytest.mark.slow
def test_datasets_and_lora_dpo_read_it_back(
    hub: Hub, source: str, tmp_path: Path, client_environment: dict[str, str]
) -> None:
    target = Target("me/prefs", "dataset", True)
    push_data(source, target, None, Manner(yes=True))
    assert hub.files("me/prefs", kind="datasets") == contents(pack_data(source, "me/prefs", None, None))
    result = run_python("-c", READ_BACK, cwd=tmp_path, **client_environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("READ\n")
    before = len(hub.requests)
    push_data(source, target, None, Manner(yes=True))
    assert "commit" not in hub.requests[before:]


def test_all_rows_have_a_group_or_none_has(tmp_path: Path) -> None:
    # `datasets` reads in chunks, and takes the columns from the first: a key that comes later ends its reading.
    file = tmp_path / "prefs.jsonl"
    rows = [{"prompt": f"Question {n}?", "chosen": f"Yes, {n}.", "rejected": "No."} for n in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "prompt": "Q?", "group": "own"}]))
    lines = contents(pack_data(str(file), "me/prefs", None, None))["data/train.jsonl"].splitlines()
    groups = [json.loads(line)["group"] for line in lines]
    assert (len(groups), groups[-1]) == (4, "own")
    assert len(set(groups)) == 4


def test_a_licence_that_the_hub_does_not_know(source: str) -> None:
    with pytest.raises(UserError, match="'cc-by-4' is no licence that the Hub knows") as refused:
        pack_data(source, "me/prefs", "cc-by-4", None)
    assert "Did you mean 'cc-by-4.0'?" in refused.value.fix
