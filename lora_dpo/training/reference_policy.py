"""Which policy the reference is: one hash over all that its log-probs depend on, but for the tokens."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from trl import DPOTrainer

from lora_dpo.model.adapter import adapter_folder
from lora_dpo.model.hashes import weights_hash
from lora_dpo.recipe.schema import Recipe
from lora_dpo.tree.hf import takes_trees

SCORING_VERSION = 1
"""To be raised when a change to this package changes log-probs by more than rounding."""
_BESIDE_THE_WEIGHTS = ("config.json", "adapter_config.json", "*.py")


@dataclass(frozen=True, slots=True)
class ReferencePolicy:
    """What the reference's log-probs depend on.

    Attributes:
        parts: By name, as JSON takes them.
    """

    parts: dict[str, Any]

    @property
    def key(self) -> str:
        """SHA-256 of all parts."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()


def reference_policy(trainer: DPOTrainer, recipe: Recipe) -> ReferencePolicy | None:
    """Returns the identity of a trainer's reference, or None where nothing tells it from another one.

    Weights are known by the files that they were loaded from, since ZeRO-3 leaves a process only empty shards of them.
    So a model from files must be as its files are. One that was made in memory is known by its tensors.

    Args:
        trainer: A trainer that has not started.
        recipe: Its recipe.
    """
    model = trainer.accelerator.unwrap_model(trainer.ref_model or trainer.model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config = base.config
    weights = weights_hash(config._name_or_path, recipe.model.revision, _BESIDE_THE_WEIGHTS) or _tensors_hash(base)
    if weights is None:
        return None
    quantisation = getattr(config, "quantization_config", None)
    return ReferencePolicy(
        {
            "scoring_version": SCORING_VERSION,
            "weights": weights,
            **_adapter_below(recipe),
            "quantisation": None if quantisation is None else _as_json(quantisation),
            "weights_dtype": str(base.dtype).removeprefix("torch."),
            "autocast": trainer.accelerator.mixed_precision,
            "attention": config._attn_implementation,
            "trees": takes_trees(base),
        }
    )


def adapter_hash(init_from: str | None) -> str | None:
    """Returns the hash of the adapter of which a frozen copy is the reference."""
    if init_from is None:
        return None
    return weights_hash(str(adapter_folder(init_from) or init_from), None, _BESIDE_THE_WEIGHTS)


def _adapter_below(recipe: Recipe) -> dict[str, Any]:
    """Returns which adapter is part of the reference, and whether it was rounded into the weights."""
    adapter = recipe.adapter
    if recipe.dpo.reference_model == "base":
        return {"adapter": None}
    merged = {"merged": True} if adapter.init_mode == "merge" else {}
    return {"adapter": adapter_hash(adapter.init_from), **merged}


def _tensors_hash(model: PreTrainedModel) -> str | None:
    """Returns one hash over the weights below any adapter; None where they are not whole on this process."""
    whole = hashlib.sha256(model.config.to_json_string().encode())
    for name, value in sorted(model.state_dict().items()):
        if "lora_" in name:
            continue
        if value.is_meta or hasattr(value, "ds_id") or isinstance(value, DTensor):
            return None
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        whole.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _as_json(quantisation: Any) -> Any:
    values = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    return json.loads(json.dumps(values, default=str))
