from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path

import lora_dpo
from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.model.hashes import config_hash, file_hash, weights_hash
from lora_dpo.model.lineage import tokenizer_hash
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.training.provenance import provenance
from tests.small import small_recipe


def test_says_what_the_run_was_made_of(tiny_models, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_models("gpt2"), tmp_path, run={"seed": 5})
    data = {"splits": {"train": {"hash": "a", "pairs": 3}, "validation": {"hash": "b"}, "test": {"hash": "c"}}}
    tokenizer = load_tokenizer(recipe.model)
    found = provenance(recipe, BatchPlan(16, 4, 2, 2), data, load_model(recipe.model), tokenizer)
    assert found["schema_version"] == 1
    assert found["code"]["version"] == lora_dpo.__version__
    assert found["python"] == platform.python_version()
    assert found["packages"]["trl"] == importlib.metadata.version("trl")
    assert found["packages"].keys() >= {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
    base = str(tiny_models("gpt2"))
    assert found["model"] == {
        "name": base,
        "revision": None,
        "weights_sha256": weights_hash(base, None),
        "files": {"model.safetensors": file_hash(Path(base) / "model.safetensors")},
        "config_sha256": config_hash(Path(base)),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "provenance": None,
    }
    assert (found["stage"], found["parents"], found["quantization"]) == ("dpo", [], None)
    assert found["data"] == {"train": "a", "validation": "b", "test": "c"}
    assert (found["seed"], found["world_size"], found["strategy"]) == (5, 2, "single")
    assert found["batch"] == {"global": 16, "micro": 4, "accumulation": 2}
    json.dumps(found)
