from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_dpo.data.pair import group_of, user
from lora_dpo.data.sources import load_pairs
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import Columns, DataSection, SamplePairs, Source

REPOSITORY = Path(__file__).parents[2]
PLAIN = [{"prompt": f"Question {i}?", "chosen": "yes", "rejected": "no"} for i in range(4)]


def data(*sources: Path | str | Source, **keys) -> DataSection:
    return DataSection(path=[one if isinstance(one, Source) else str(one) for one in sources], **keys)


def refused(section: DataSection) -> str:
    with pytest.raises(UserError) as caught:
        load_pairs(section)
    return str(caught.value)


def test_a_file(jsonl):
    path = jsonl(PLAIN)
    loaded = load_pairs(data(path))
    (pairs,) = loaded.by_source
    assert [pair.prompt for pair in pairs] == [user(f"Question {i}?") for i in range(4)]
    assert {(pair.chosen, pair.rejected, pair.source) for pair in pairs} == {("yes", "no", 0)}
    assert pairs[2].origin == f"{path}, line 3"
    assert pairs[2].group == group_of(user("question 2"))
    assert loaded.formats == [["prompt, chosen, rejected"]]
    assert (loaded.report.rows, loaded.report.bad_rows, loaded.report.rows_without_pair) == (4, 0, 0)


def test_several_sources_of_several_formats(jsonl, tmp_path):
    hh = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."}
    jsonl([hh], "folder.jsonl")
    folder = tmp_path / "folder"
    folder.mkdir()
    jsonl([hh], "folder/a.jsonl")
    jsonl(PLAIN, "folder/b.jsonl")
    loaded = load_pairs(data(folder, Source(path=str(tmp_path / "folder.jsonl"), use="test")))
    assert [len(pairs) for pairs in loaded.by_source] == [5, 1]
    assert loaded.formats == [
        ["HH-RLHF (whole conversations)", "prompt, chosen, rejected"],
        ["HH-RLHF (whole conversations)"],
    ]
    assert loaded.by_source[1][0].source == 1
    assert loaded.report.rows == 6


def test_explicit_columns_and_groups(jsonl):
    path = jsonl(
        [{"q": "Why?", "good": "a", "bad": "b", "topic": "t1"}, {"q": "How?", "good": "a", "bad": "b", "topic": "t1"}]
    )
    columns = Columns(prompt="q", chosen="good", rejected="bad", group="topic")
    (pairs,) = load_pairs(data(path, columns=columns)).by_source
    assert [pair.group for pair in pairs] == ["t1", "t1"]
    wrong = Columns(prompt="qq", chosen="good", rejected="bad")
    assert f"{path}: data.columns.prompt is 'qq', but there is no such column" in refused(data(path, columns=wrong))


def test_a_bad_row_is_named_or_skipped(jsonl):
    path = jsonl([*PLAIN, {"prompt": "x", "chosen": 3, "rejected": "no"}, *PLAIN])
    message = refused(data(path))
    assert message.startswith(f"{path}, line 5: column 'chosen' is 3, not an object with role and content")
    assert "data.on_bad_row: skip" in message
    loaded = load_pairs(data(path, on_bad_row="skip"))
    assert len(loaded.by_source[0]) == 8
    assert (loaded.report.rows, loaded.report.bad_rows) == (9, 1)
    assert loaded.report.reasons[0].startswith(f"{path}, line 5: column 'chosen' is 3")


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (["user", "assistant"], "the prompt ends in a turn of the assistant, not of the user"),
        ([], "the prompt has no turn"),
        (["user", "system", "user"], "the prompt has a system turn after the first turn"),
    ],
)
def test_prompts_must_end_in_a_question(jsonl, roles, reason):
    prompt = [{"role": role, "content": "x"} for role in roles]
    assert reason in refused(data(jsonl([{"prompt": prompt, "chosen": "a", "rejected": "b"}])))


def test_a_broken_line_after_the_first_hundred(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(PLAIN[0])] * 150 + ["{"] + [json.dumps(PLAIN[1])]
    path.write_text("\n".join(lines))
    assert f"{path}, line 151: the line is not valid JSON" in refused(data(path))
    loaded = load_pairs(data(path, on_bad_row="skip"))
    assert (len(loaded.by_source[0]), loaded.report.rows, loaded.report.bad_rows) == (151, 152, 1)


def test_only_bad_rows(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("{\n[\n")
    message = refused(data(path, on_bad_row="skip"))
    assert message.startswith(f"{path}: no row could be read")
    assert f"{path}, line 2" in message


def test_rows_without_a_pair(jsonl):
    tie = {"instruction": "x", "completions": [{"response": "a", "score": 1}, {"response": "b", "score": 1}]}
    message = refused(data(jsonl([tie, tie]), min_margin=2))
    assert "the source holds no usable pair" in message
    assert "2 rows, 0 of them bad, 2 without a preference" in message
    assert "Lower data.min_margin (now 2.0)" in message


def test_margin_without_scores(jsonl):
    assert "data.min_margin is 1.0, but no source has scores" in refused(data(jsonl(PLAIN), min_margin=1))


def test_unknown_format_names_the_file(jsonl):
    path = jsonl([{"text": "x"}])
    assert refused(data(path)).startswith(f"{path}: the columns text are no known preference format")


def test_bundled_misconceptions():
    best = load_pairs(DataSection())
    assert best.formats == [["TruthfulQA (CSV)"]]
    assert best.report.bad_rows == 0
    assert len(best.by_source[0]) == best.report.rows >= 100
    assert best.by_source[0][0].prompt == user("What does fitness mean in evolutionary biology?")
    everything = load_pairs(DataSection(pairs="all")).by_source[0]
    sampled = load_pairs(DataSection(pairs=SamplePairs(sample=2))).by_source[0]
    assert len(best.by_source[0]) < len(sampled) < len(everything)
    assert {pair.group for pair in sampled} == {pair.group for pair in everything}


def test_questions_are_read_beside_the_pairs(jsonl):
    hub = {"question": "Why?", "best_answer": "", "correct_answers": ["a", "b"], "incorrect_answers": ["c"]}
    bare = hub | {"question": "What?", "correct_answers": [], "best_answer": "It."}
    path = jsonl([hub, bare])
    loaded = load_pairs(data(jsonl(PLAIN, "plain.jsonl"), path))
    assert [(one.prompt, one.correct, one.incorrect, one.best) for one in loaded.questions] == [
        (user("Why?"), ("a", "b"), ("c",), "a"),  # no best answer is named
        (user("What?"), ("It.",), ("c",), "It."),  # the best answer is a correct one
    ]
    assert [(one.origin, one.source) for one in loaded.questions] == [(f"{path}, line 1", 1), (f"{path}, line 2", 1)]
    assert [one.group for one in loaded.questions] == [group_of(user("why")), group_of(user("what"))]


def test_multiple_choice_as_the_hub_stores_it(tmp_path):
    targets = {"choices": ["a", "", "b"], "labels": [1, 1, 0]}
    row = {"question": "Why?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}, "mc2_targets": targets}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "validation-00000.parquet")
    (question,) = load_pairs(data(tmp_path)).questions
    assert (question.correct, question.incorrect, question.best) == (("a", ""), ("b",), "a")


def test_a_question_needs_something_to_choose_between(jsonl):
    old = {"Question": "Why?", "Best Answer": "a", "Correct Answers": "a", "Incorrect Answers": ""}
    loaded = load_pairs(data(jsonl([old | {"Best Incorrect Answer": "b"}])))
    assert [(pair.chosen, pair.rejected) for pair in loaded.by_source[0]] == [("a", "b")]
    assert loaded.questions == []


def test_a_bad_question_is_a_bad_row(jsonl):
    good = {"question": "Why?", "mc1_targets": {"a": 1, "b": 0}, "mc2_targets": {"a": 1, "b": 0}}
    path = jsonl([good, good | {"mc1_targets": {"a": 1, "b": 1}}])
    assert refused(data(path)).startswith(f"{path}, line 2: column 'mc1_targets' has 2 correct answers, not one")
    loaded = load_pairs(data(path, on_bad_row="skip"))
    assert (len(loaded.by_source[0]), len(loaded.questions), loaded.report.bad_rows) == (1, 1, 1)


@pytest.mark.parametrize("name", ["bundled/misconception", "bundled/../data/misconceptions", "bundled/"])
def test_unknown_bundled_data(name):
    assert "is no data that comes with lora-dpo\n" in refused(DataSection(path=name))
    assert "bundled/misconceptions" in refused(DataSection(path=name))


def test_missing_file_suggests_the_nearest(jsonl, tmp_path, monkeypatch):
    path = jsonl(PLAIN, "preferences.jsonl")
    message = refused(data(tmp_path / "preference.jsonl"))
    assert f"there is no file or folder '{tmp_path / 'preference.jsonl'}'" in message
    assert f"Did you mean '{path}'?" in message
    monkeypatch.chdir(tmp_path)
    assert "Did you mean 'preferences.jsonl'?" in refused(data("preferences.json"))


@pytest.mark.parametrize(
    "name", ["./org/name", "/org/name", "~/nothing/here", "a/b/c", "word", "org/name.csv", "org/", "."]
)
def test_what_is_no_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "not in the local cache" not in refused(DataSection(path=name))


@pytest.mark.parametrize("name", ["org/name", "org/name-v1.1"])
def test_hub_ids_go_to_the_hub(name, tmp_path):
    script = "import sys\nfrom lora_dpo.data.sources import *\nload_pairs(DataSection(path=sys.argv[1]))"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script, name], env=environment, capture_output=True, text=True)
    assert f"the data set {name} is not in the local cache" in done.stderr


def test_folder_as_downloaded_data_set(jsonl, tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    repository = tmp_path / "repository" / "data"
    repository.mkdir(parents=True)
    jsonl(PLAIN, "repository/data/train_prefs-00000.jsonl")
    jsonl(PLAIN[:1], "repository/data/test_prefs-00000.jsonl")
    (repository.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train_prefs, path: data/train_prefs-*}\n"
        "  - {split: test_prefs, path: data/test_prefs-*}\n---\n"
    )
    assert "the folder holds no data file" in refused(data(repository.parent))
    loaded = load_pairs(data(Source(path=str(repository.parent), hub_split="train_prefs")))
    assert [pair.origin for pair in loaded.by_source[0]][-1] == f"{repository.parent} [train_prefs], row 4"
    assert loaded.report.rows == 4


def test_ultrafeedback(shared_data):
    loaded = load_pairs(data(shared_data / "ultrafeedback" / "train.jsonl"))
    (pairs,) = loaded.by_source
    assert len(pairs) == 1000
    assert pairs[0].prompt == user("how to cook t-bone in the oven")
    assert pairs[0].chosen.startswith("To cook a delicious T-bone steak")


def test_truthfulqa(shared_data):
    path = shared_data / "truthfulqa" / "TruthfulQA.csv"
    assert len(load_pairs(data(path)).by_source[0]) == 790
    everything = load_pairs(data(path, pairs="all"))
    assert len({pair.group for pair in everything.by_source[0]}) == 790
    task = load_pairs(data(shared_data / "truthfulqa" / "mc_task.json", pairs="all"))
    assert task.formats == [["TruthfulQA (multiple choice)"]]
    assert [one.group for one in task.questions] == [one.group for one in everything.questions]
    assert len({one.group for one in task.questions}) == 790
    # mc_task.json has 'Unknown' as an incorrect answer only; the CSV's pairs leave it out on both sides.
    known = {(pair.group, pair.chosen, pair.rejected) for pair in everything.by_source[0]}
    more = [pair for pair in task.by_source[0] if (pair.group, pair.chosen, pair.rejected) not in known]
    assert [pair.rejected for pair in more] == ["Unknown"] * 7
    assert len(task.by_source[0]) == len(known) + 7


def test_importing_the_data_layer_is_light():
    script = (
        "import sys, lora_dpo.data.sources, lora_dpo.data.split, lora_dpo.data.lint, lora_dpo.data.manifest\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)
