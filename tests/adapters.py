"""Adapters with random values, on models from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lora_dpo.model.adapter import lora_config
from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.model.hashes import weights_hash
from lora_dpo.model.lineage import identify
from lora_dpo.model.record import write_record
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import AdapterSection, ModelSection
from tests.small import small_recipe


def save_adapter(base: Path, folder: Path, *, seed: int = 1, std: float = 0.1, **settings: Any) -> Path:
    """Saves an adapter that changes a model's answers; `settings` are keys of a recipe's adapter section."""
    model = load_model(ModelSection(name=str(base)))
    torch.manual_seed(seed)
    adapted = get_peft_model(model, lora_config(AdapterSection(**{"r": 4, "alpha": 8, **settings}), model))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
        elif "lora_magnitude" in name:
            parameter.data *= 1.2
    adapted.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, *adapters: Path) -> dict[str, torch.Tensor]:
    """Returns what PEFT makes of a model in memory, in float32, one adapter after the other."""
    model: Any = load_model(ModelSection(name=str(base), dtype="float32"))
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.state_dict()


def known(base: Path) -> dict[str, Any]:
    """Returns what a model is known by."""
    section = ModelSection(name=str(base))
    return identify(section, load_tokenizer(section))


def record(base: Path, adapter: Path, **changes: Any) -> None:
    """Writes beside an adapter what a run of this package would say of it."""
    said = {
        "stage": "dpo",
        "code": {"version": "0", "commit": None},
        "model": known(base),
        "parents": [],
        "quantization": None,
        "weights_sha256": weights_hash(str(adapter), None),
        "recipe": small_recipe(base, Path("runs")).model_dump(mode="json"),
    }
    write_record(adapter, said | changes)


def finished_run(base: Path, folder: Path) -> RunFolder:
    """Makes the run `small` with an adapter that changes its base's answers, as if it had gone through."""
    recipe = small_recipe(base, folder)
    run = RunFolder.of(recipe)
    run.create(recipe, overwrite=False).release()
    record(base, save_adapter(base, run.adapter, std=0.5))
    load_tokenizer(ModelSection(name=str(base))).save_pretrained(run.adapter)
    run.report_json.write_text("{}")
    return run


def spoil(file: Path) -> None:
    """Changes a number in a safetensors file."""
    tensors = load_file(file)
    name = min(tensors)
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, metadata={"format": "pt"})
