"""Loads what is to be measured: the model before and after, and what it is measured on."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel

from lora_dpo.console import note
from lora_dpo.data.chat import TurnEncoder
from lora_dpo.evaluation.asked import Asked
from lora_dpo.evaluation.evaluate import Subject, check_evaluation
from lora_dpo.evaluation.held_out import UNKNOWN_TRAINING, HeldOut, other_data, own_data
from lora_dpo.evaluation.policies import Policies
from lora_dpo.model.adapter import adapter_folder, load_adapter
from lora_dpo.model.base import load_model, load_tokenizer, resolve
from lora_dpo.model.hashes import weights_hash
from lora_dpo.model.lineage import check_lineage, identify
from lora_dpo.model.same_tokenizer import check_same_tokenizer
from lora_dpo.tree.hf import score_over_trees


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is measured.

    Attributes:
        subject: The model before and after, its pairs and its questions.
        held_out: The same data, with what must be known of it.
    """

    subject: Subject
    held_out: HeldOut


def load(asked: Asked) -> Loaded:
    """Loads a run, an adapter or a model, and its test set; the models last, since that takes longest.

    Args:
        asked: What was asked for.

    Raises:
        UserError: The base is another one than the one trained on, reads text otherwise, or cannot be loaded; the
            test set cannot be read, or was trained on.
    """
    recipe = asked.recipe
    tokenizer = load_tokenizer(recipe.model)
    whose = asked.named.place if asked.named.run is None else str(asked.named.run.path)
    check_lineage(asked.named.place, identify(recipe.model, tokenizer), name=whose)
    encoder = TurnEncoder(tokenizer, recipe.model.template)
    check_same_tokenizer(tokenizer, recipe.model, asked.named.place, chats=encoder.style == "chat")
    if asked.data is not None:
        held_out = other_data(recipe, tokenizer, asked.named.run)
    elif asked.named.run is not None:
        held_out = own_data(asked.named.run, recipe, tokenizer)
    else:
        held_out = HeldOut(encoder, caveats=[UNKNOWN_TRAINING])
    check_evaluation(recipe, held_out.questions)
    subject = Subject(_load_policies(asked), held_out.encoder, held_out.pairs, held_out.questions, held_out.examples)
    return Loaded(subject, held_out)


def base_hash(asked: Asked) -> str | None:
    """Returns the hash of the base's weights as they are now; None where there are no files of them."""
    model = asked.recipe.model
    return weights_hash(resolve(model), model.revision)


def _load_policies(asked: Asked) -> Policies:
    recipe, place = asked.recipe, asked.named.place
    device = PartialState().device
    base = load_model(recipe.model, four_bit=recipe.adapter.method == "qlora")
    if recipe.adapter.method == "full":
        section = recipe.model.model_copy(update={"name": place, "revision": None})
        models: list[PreTrainedModel | PeftModel] = [load_model(section), base]
    else:
        tuned = load_adapter(place, base)
        start = recipe.adapter.init_from if recipe.dpo.reference_model == "init" else None
        if start is not None:  # what the training started from, under the name that it has there
            tuned.load_adapter(str(adapter_folder(start) or start), "ref")
        models = [tuned]
    for model in models:
        if (reason := score_over_trees(model)) is not None:
            note(f"Trees are off: {reason}.")
        if recipe.adapter.method != "qlora":
            model.to(device)
    return Policies(*models)
