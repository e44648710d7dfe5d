"""Trained weights from a checkpoint into a model that waits to be divided."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel


def load_trained(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Puts a checkpoint's adapter into the model; a model that was trained whole is loaded from the folder instead.

    Args:
        model: The model, whose weights ZeRO-3 may have divided already.
        folder: A checkpoint.
    """
    if not isinstance(model, PeftModel):
        return
    trained = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad]
    whole = nullcontext()
    if any(hasattr(parameter, "ds_id") for parameter in trained):
        import deepspeed

        whole = deepspeed.zero.GatheredParameters(trained, modifier_rank=0)
    with whole:
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), "default")
