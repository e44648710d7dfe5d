"""The real package lm-eval, on tasks with local data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.errors import UserError
from lora_dpo.evaluation import harness
from lora_dpo.evaluation.harness import Harness, read_tasks, run_tasks
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work
from tests.evaluation.models import tiny_policies
from tests.evaluation.tasks import COUNT, write_questions, write_tasks

pytest.importorskip("lm_eval")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")


@pytest.fixture
def policies(tiny_models) -> tuple[Policies, TurnEncoder]:
    found, encoder = tiny_policies(tiny_models("llama"))
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in found.trained.named_parameters():
            if parameter.dim() > 1 and "lora" not in name:  # so that the question decides the answer
                parameter.normal_(std=0.3)
    return found, encoder


def run(policies, own: Path, *names: str, limit: int | None = None, work: Work | None = None) -> Harness:
    found, encoder = policies
    return run_tasks(work or Work(), found, encoder.tokenizer, read_tasks(names, own, limit), batch_size=2)


@torch.no_grad()
def accuracy(model: torch.nn.Module, encoder: TurnEncoder, count: int) -> float:
    """Computes what the task `facts` measures, one answer at a time."""
    right = []
    for n in range(count):
        scores = []
        for answer in (f" {2 * n}", f" {n}", " none of it"):
            context = f"Q: What is {n} and {n}?\nA:"
            start, ids = len(encoder.tokenizer(context)["input_ids"]), encoder.tokenizer(context + answer)["input_ids"]
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(log_probs[place - 1, ids[place]].item() for place in range(start, len(ids))))
        right.append(scores.index(max(scores)) == n % 3)
    return sum(right) / count


def test_a_task_before_and_after(policies, own: Path) -> None:
    found = run(policies, own, "facts")
    assert (found["package"].split(), found["chat_template"], found["limit"]) == (["lm-eval", "0.4.13"], False, None)
    (number,) = found["tasks"]
    expected = {"task": "facts", "version": "3.0", "metric": "acc", "filter": "none", "n": COUNT, "shots": 0}
    assert {key: number[key] for key in expected} == expected
    assert number["higher_is_better"] is True
    for when in ("before", "after"):
        with getattr(policies[0], when)() as model:
            share = accuracy(model, policies[1], COUNT)
        assert number[when] == pytest.approx(share)
        assert number[f"stderr_{when}"] == pytest.approx((share * (1 - share) / (COUNT - 1)) ** 0.5)
    assert number["before"] != number["after"]


def test_a_limit_takes_the_first_documents(policies, own: Path) -> None:
    found = run(policies, own, "facts", "words", limit=4)
    assert [(one["task"], one["metric"], one["n"]) for one in found["tasks"]] == [
        ("facts", "acc", 4),
        ("words", "exact_match", 4),
    ]
    with policies[0].after() as model:
        assert found["tasks"][0]["after"] == pytest.approx(accuracy(model, policies[1], 4))


def test_what_was_run_before_is_not_run_again(policies, own: Path, tmp_path: Path, monkeypatch) -> None:
    work = Work(tmp_path / "kept")
    first = run(policies, own, "facts", work=work)
    calls: list[str] = []
    rows = harness._Runner._rows
    monkeypatch.setattr(harness._Runner, "_rows", lambda self, name: calls.append(name) or rows(self, name))
    assert run(policies, own, "facts", work=work) == first
    assert calls == []
    both = run(policies, own, "facts", "words", work=work)
    assert (both["tasks"][0], calls) == (first["tasks"][0], ["words", "words"])
    write_questions(own / "questions.jsonl", shift=5)  # other documents under the same name
    run(policies, own, "facts", work=work)
    run(policies, own, "facts", limit=2, work=work)
    assert calls == ["words", "words", *["facts"] * 4]


def test_where_memory_ends_the_batch_is_halved(policies, own: Path, monkeypatch, capfd) -> None:
    expected = run(policies, own, "facts")
    wrapped, sizes = harness._wrapped, []

    def small(model, tokenizer, batch_size, **options):
        sizes.append(batch_size)
        if batch_size > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return wrapped(model, tokenizer, batch_size, **options)

    monkeypatch.setattr(harness, "_wrapped", small)
    assert run(policies, own, "facts") == expected
    assert sizes == [2, 1, 2, 1]
    said = " ".join(capfd.readouterr().err.split())
    assert "There was not enough memory: harness, before, facts, 2 at once. It goes on with 1." in said


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lost"], r"The task 'lost' cannot be built: .*\n.*from the Hub.*\n.*the same HF_HOME"),
        (["unsafe"], r"The task 'unsafe' runs code that the model writes\.\n.*lm-eval"),
    ],
)
def test_tasks_that_cannot_be_run(names: list[str], message: str, own: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_tasks(names, own, None)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--harness-path .*nowhere is no folder"):
        read_tasks(["facts"], tmp_path / "nowhere", None)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'--harness needs the package lm-eval\.\nRun: pip install "lora-dpo\[eval\]"'):
        read_tasks(["facts"], None, None)


@pytest.mark.slow
def test_groups_and_the_harness_s_own_names(policies, own: Path) -> None:
    found = run(policies, own, "both", limit=2)
    assert [one["task"] for one in found["tasks"]] == ["facts", "words"]
    for typo, name in (("hellasweg", "hellaswag"), ("facst", "facts")):
        with pytest.raises(UserError, match=rf"has no task '{typo}'\.\nDid you mean '{name}'\? `lm-eval ls"):
            read_tasks([typo], own, None)
