from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.manifest import read_pairs
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.preference import pair_scores, questions_of, summarise
from lora_dpo.evaluation.scoring import score_both
from lora_dpo.evaluation.work import Work
from lora_dpo.pipeline import align
from lora_dpo.recipe.loading import all_keys, load_recipe
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
# Which tiny model stands for the recipe's own.
ARCHITECTURE = {
    "quickstart": "llama",
    "gemma2_9b_truthfulqa": "gemma2",
    "gemma2_9b_truthfulqa_qlora": "gemma2",
    "gpt2_ultrafeedback": "gpt2",
    "llama31_8b_preferences": "llama",
    "smollm2_truthfulqa": "llama",
    "tinyllama_sft_dpo": "tinyllama",
}
TRAINED = [(name, architecture, ()) for name, architecture in ARCHITECTURE.items()]
TRAINED.append(("gpt2_ultrafeedback", "gptj", ()))  # another model name is the one override that it needs

QUESTIONS = [
    (f"What is {n} plus {n}?", f"It is {2 * n}, since {n} and {n} make {2 * n}.", f"It is {2 * n + 1}.")
    for n in range(1, 13)
]


def write_truthfulqa(path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["Type", "Category", "Question", "Best Answer", "Best Incorrect Answer", "Correct Answers"]
            + ["Incorrect Answers", "Source"]
        )
        for question, right, wrong in QUESTIONS:
            correct, incorrect = f"{right}; {right} Surely", f"{wrong}; Nobody knows"
            writer.writerow(["Adversarial", "Sums", question, right, wrong, correct, incorrect, "a test"])
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def data_for(recipe: str, folder: Path) -> Path:
    """Writes a small file in the format that the recipe's own data has."""
    if "truthfulqa" in recipe:
        return write_truthfulqa(folder / "TruthfulQA.csv")
    if recipe == "gpt2_ultrafeedback":
        rows = [
            {
                "prompt": q,
                "chosen": turns(q, right),
                "rejected": turns(q, wrong),
                "score_chosen": 8,
                "score_rejected": 3,
            }
            for q, right, wrong in QUESTIONS
        ]
    else:
        rows = [{"prompt": q, "chosen": right, "rejected": wrong} for q, right, wrong in QUESTIONS]
    return write_jsonl(folder / "pairs.jsonl", rows)


def overrides_for(name: str, model: Path, folder: Path) -> list[str]:
    data = "bundled/misconceptions" if name == "quickstart" else data_for(name, folder)
    overrides = [
        f"model.name={model}",
        f"data.path={data}",
        "data.split.test=0.25",
        "data.split.validation=0.1",
        "train.max_steps=2",
        "train.global_batch_size=4",
        "train.tokens_per_micro_batch=null",
        "train.micro_batch_size=2",
        "train.strategy=single",
        "evaluation.samples=2",
        "evaluation.max_new_tokens=4",
        "evaluation.folds=null",
        "dpo.max_length=256",
        f"run.folder={folder / 'runs'}",
    ]
    return overrides + (["data.limit=120"] if name == "quickstart" else [])


@pytest.fixture
def shipped():
    """Returns a function from a recipe's name to its file; a recipe that is not there yet is skipped."""

    def find(name: str) -> Path:
        path = REPOSITORY / "recipes" / f"{name}.yaml"
        if not path.is_file():
            pytest.skip(f"recipes/{name}.yaml does not exist yet")
        return path

    return find


def test_every_recipe_is_trained_below() -> None:
    assert {path.stem for path in RECIPES} <= set(ARCHITECTURE)
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_accepted_and_named_like_its_file(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.run.name == path.stem
    assert load_recipe(path.stem) == recipe  # found by name as well


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_key_of_a_recipe_has_a_comment(path: Path) -> None:
    """A key's comment stands behind it, or on the lines right above it."""
    bare = []
    commented = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if text.startswith("#"):
            commented = True
            continue
        key = re.match(r"\s+(- )?([a-z_0-9]+): +\S", line)  # a key without a value opens a sub-section
        if key and "#" not in line and not commented:
            bare.append(f"{path.name}:{number}: {key[2]}")
        commented = False
    assert bare == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_key_of_a_recipe_is_there_twice(path: Path) -> None:
    """YAML lets a later key win silently."""
    known = set(all_keys())
    sections = {key.partition(".")[0] for key in known}
    node = yaml.compose(path.read_text(encoding="utf-8"))
    for mapping in [node, *(value for _, value in node.value if isinstance(value, yaml.MappingNode))]:
        keys = [key.value for key, _ in mapping.value]
        assert len(keys) == len(set(keys))
    assert {key.value for key, _ in node.value} <= sections


@pytest.mark.parametrize(
    ("name", "architecture", "extra"), TRAINED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_recipe_trains(
    name: str, architecture: str, extra: tuple[str, ...], shipped, tiny_models, tmp_path: Path
) -> None:
    model = tiny_models(architecture)
    recipe = load_recipe(shipped(name), [*overrides_for(name, model, tmp_path), *extra])
    folder = align(recipe)

    run = RunFolder.open(folder)
    assert folder == tmp_path / "runs" / name
    assert run.is_complete
    assert run.load_recipe() == recipe
    for file in ("recipe.yaml", "provenance.json", "metrics.jsonl", "report.json", "report.md"):
        assert (folder / file).stat().st_size > 0
    has_questions = name == "quickstart" or "truthfulqa" in name
    questions = ["questions.jsonl"] * has_questions
    assert sorted(file.name for file in run.data.iterdir()) == ["pairs.jsonl", *questions, "reference", "splits.json"]
    assert {file.name for file in run.plots.iterdir()} >= {"loss.png", "training.png", "evaluation.png"}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {
        file.name for file in run.adapter.iterdir()
    }
    assert not [file for file in folder.rglob("*partial*")]

    report = json.loads(run.report_json.read_text())
    about = ["schema_version", "run", "model", "subject", "verdict", "training", "data"]
    measured = ["multiple_choice", "preference", "generation", "cost", "harness", "examples", "samples", "caveats"]
    assert list(report) == [*about, *measured]
    assert report["training"]["steps"] == 2
    assert (report["multiple_choice"] is not None) == has_questions
    assert len(report["samples"]) == 2
    steps = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [entry["step"] for entry in steps if entry["phase"] == "train"] == [1, 2]

    check_adapter_with_plain_peft(recipe, run, model, report)


def check_adapter_with_plain_peft(recipe: Recipe, run: RunFolder, model: Path, report: dict[str, Any]) -> None:
    """On the original base, plain PEFT gives the trained model: the report's margins come out again."""
    options: dict[str, Any] = {"attn_implementation": "eager"}
    if recipe.adapter.method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        options["device_map"] = {"": "cpu"}
    dtype = torch.float32 if recipe.model.dtype == "auto" else getattr(torch, recipe.model.dtype)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **options)
    for module in base.modules():  # bitsandbytes' kernel for evaluation on a CPU fails on layers below 64 features
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    tuned = PeftModel.from_pretrained(base, run.adapter).eval()
    assert any(value.abs().max() > 0 for name, value in tuned.named_parameters() if "lora_B" in name), "nothing learnt"
    encoder = TurnEncoder(AutoTokenizer.from_pretrained(run.adapter), recipe.model.template)
    test = list(encoder.encode(read_pairs(run.data / "pairs.jsonl")["test"]))
    tolerance = 1e-3 if dtype == torch.float32 else 0.5
    scores = pair_scores(test, score_both(Work(), Policies(tuned), questions_of(test), batch_size=8))
    found = summarise(scores, beta=recipe.dpo.beta, seed=0)
    for when in ("before", "after"):
        assert found["margin"][when] == pytest.approx(report["preference"]["margin"][when], abs=tolerance)
    assert (found["n_pairs"], found["n_groups"]) == (len(test), len({pair.pair.group for pair in test}))
