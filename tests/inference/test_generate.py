from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from lora_dpo.errors import UserError
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import find_model
from lora_dpo.inference.generate import Request, generate, plan_batches
from lora_dpo.inference.sampling import Sampling

QUESTIONS = [f"Why is {'the sky over the sea ' * (number % 4)}number {number}?" for number in range(23)]


@pytest.fixture
def request_of(work: Path, tmp_path: Path):
    """Returns a function that makes a request for answers of a tiny run, in a folder of its own."""
    rows = [{"id": f"q{number}", "prompt": question} for number, question in enumerate(QUESTIONS)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(name: str = "out.jsonl", **changes) -> Request:
        request = Request(
            find_model("runs/small"), str(tmp_path / "in.jsonl"), tmp_path / name, Sampling(6, seed=0), batch_size=2
        )
        return dataclasses.replace(request, **changes)

    return make


def rows_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_prompt_has_its_answer_in_order_whatever_the_batch(request_of, temperature: float) -> None:
    request = request_of(sampling=Sampling(6, temperature, top_p=0.9, repetition_penalty=1.2, seed=4))
    generate(request)
    rows = rows_in(request.output)
    assert [(row["index"], row["id"], row["prompt"]) for row in rows] == [
        (number, f"q{number}", question) for number, question in enumerate(QUESTIONS)
    ]
    model = ChatModel(request.found)
    for row in rows[:5]:
        prompt = model.encoder.prompt_ids(({"role": "user", "content": row["prompt"]},))
        (alone,) = model.answers([prompt], request.sampling)
        expected = (alone["text"], len(alone["ids"]), alone["ended"], "runs/small")
        assert (row["answer"], row["tokens"], row["ended"], row["model"]) == expected
    assert len({row["answer"] for row in rows}) > 5
    other = request_of("other.jsonl", sampling=request.sampling, batch_size=5)
    generate(other)
    assert rows_in(other.output) == rows


def test_what_is_there_is_not_computed_again(request_of, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    whole, cut = request_of("whole.jsonl"), request_of("cut.jsonl")
    generate(whole)
    generate(cut)
    content = whole.output.read_bytes()
    ends = [place for place, byte in enumerate(content) if byte == 10]
    for end in (0, 10, ends[6] + 1, ends[16] + 30, ends[-1]):
        cut.output.write_bytes(content[:end])
        generate(cut)
        assert cut.output.read_bytes() == content
    monkeypatch.setattr(ChatModel, "load", lambda self: pytest.fail("there was nothing to compute"))
    capsys.readouterr()
    generate(cut)
    assert "cut.jsonl holds 23 of 23 answers already." in capsys.readouterr().err


def test_memory_that_ends_halves_the_batch(request_of, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    expected, request = request_of("expected.jsonl"), request_of(batch_size=4)
    generate(expected)
    answers, sizes = ChatModel.answers, []

    def limited(self, prompts, sampling):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return answers(self, prompts, sampling)

    monkeypatch.setattr(ChatModel, "answers", limited)
    generate(request)
    assert rows_in(request.output) == rows_in(expected.output)
    assert sizes == [4] + [2] * 11 + [1]
    assert "4 at once. It goes on with 2." in capsys.readouterr().err


def test_batches_hold_prompts_of_like_lengths_near_to_each_other() -> None:
    lengths = [5, 1, 4, 1, 5, 9, 2, 6] * 5
    batches = plan_batches(lengths, 2)
    assert sorted(place for batch in batches for place in batch) == list(range(40))
    assert batches[:8] == [[0, 4], [1, 3], [2, 10], [5, 13], [6, 14], [7, 15], [8, 12], [9, 11]]  # of the first 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": Sampling(7, seed=0)}, "max_new_tokens: 6 there, 7 now"),
        ({"sampling": Sampling(6, seed=1)}, "seed: 0 there, 1 now"),
        ({"system": "Be brief."}, 'system: "" there, "Be brief." now'),
        ({"found": "merged"}, 'model: "runs/small" there, "merged" now'),
        ({"found": "base"}, "weights_sha256: "),
    ],
)
def test_another_question_does_not_go_on(request_of, changes: dict, message: str) -> None:
    generate(request_of())
    if "found" in changes:
        changes = {"found": find_model(changes["found"])}
    with pytest.raises(UserError) as caught:
        generate(request_of(**changes))
    assert message in str(caught.value)
    assert "--overwrite" in caught.value.fix
    if "system" in changes:
        generate(request_of(**changes, overwrite=True))
        assert rows_in(request_of().output)[0]["prompt"][0] == {"role": "system", "content": "Be brief."}


def test_other_prompts_do_not_go_on(request_of) -> None:
    request = request_of()
    generate(request)
    file = Path(request.source)
    file.write_text(file.read_text().replace("number 3?", "number three?"))
    with pytest.raises(UserError, match="prompts_sha256: "):
        generate(request)


def test_other_names_of_the_rows_do_not_go_on(request_of) -> None:
    request = request_of()
    file = Path(request.source)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | {"id": f"a{n}"}) + "\n" for n, row in enumerate(rows)))
    generate(request)
    file.write_text("".join(json.dumps(row | {"id": f"b{n}"}) + "\n" for n, row in enumerate(rows)))
    with pytest.raises(UserError, match="prompts_sha256: "):
        generate(request)


def test_another_spelling_of_the_same_model_goes_on(request_of, capsys) -> None:
    request = request_of()
    generate(request)
    capsys.readouterr()
    generate(request_of(found=find_model(f"{request.found.name}/")))
    assert "answers already" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_is_named_before_anything_is_written(request_of, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "Hi"}) + "\n" + json.dumps({"prompt": "why " * 600}))
    with pytest.raises(UserError, match=r"in\.jsonl, line 2: A prompt of \d+ tokens leaves no room .* 512 positions"):
        generate(request_of())
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_input_is_not_the_output(request_of) -> None:
    with pytest.raises(UserError, match=r"in\.jsonl is both --input and --output"):
        generate(request_of("in.jsonl"))
