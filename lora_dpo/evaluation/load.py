"""A trained run, read back from its folder."""

from __future__ import annotations

from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel

from lora_dpo.console import note
from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.length import fit_length
from lora_dpo.data.manifest import read_manifest, read_pairs, read_questions
from lora_dpo.errors import UserError
from lora_dpo.evaluation.evaluate import Subject
from lora_dpo.evaluation.policies import Policies
from lora_dpo.model.adapter import adapter_folder
from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.model.lineage import check_lineage, identify
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.tree.hf import score_over_trees


def load_run(run: RunFolder) -> Subject:
    """Loads a run's model, before and after, and its held-out data.

    Args:
        run: A run that is through its training.

    Raises:
        UserError: There is no adapter or model, its base has changed, or held-out questions were trained on.
    """
    recipe = run.load_recipe()
    if not run.is_complete:
        raise UserError(
            f"{run.path} holds no finished run.", fix="Start it again with `lora-dpo dpo`: it goes on and evaluates."
        )
    manifest = read_manifest(run.data / "splits.json")
    if both := set(manifest["train"]["group_ids"]) & set(manifest["test"]["group_ids"]):
        raise UserError(
            f"{len(both)} held-out questions of {run.path} stand in its training data too.",
            why="What was trained on measures nothing.",
            fix="Train again: `lora-dpo data RECIPE` shows splits that do not overlap.",
        )
    tokenizer = load_tokenizer(recipe.model)
    trained = run.model if recipe.adapter.method == "full" else run.adapter
    check_lineage(str(trained), identify(recipe.model, tokenizer))
    encoder = TurnEncoder(tokenizer, recipe.model.template)
    pairs = list(encoder.encode(read_pairs(run.data / "pairs.jsonl")["test"]))
    fitted = fit_length(pairs, recipe.dpo.max_length, recipe.data.over_length, tokenizer.bos_token_id)
    questions = run.data / "questions.jsonl"
    return Subject(
        policies=_load_policies(run, recipe),
        encoder=encoder,
        pairs=fitted.pairs,
        questions=read_questions(questions)["test"] if questions.is_file() else [],
    )


def _load_policies(run: RunFolder, recipe: Recipe) -> Policies:
    device = PartialState().device
    base = load_model(recipe.model, four_bit=recipe.adapter.method == "qlora")
    if recipe.adapter.method == "full":
        section = recipe.model.model_copy(update={"name": str(run.model), "revision": None})
        models: list[PreTrainedModel | PeftModel] = [load_model(section), base]
    else:
        tuned = PeftModel.from_pretrained(base, str(run.adapter))
        if recipe.adapter.init_from is not None:  # what the training started from, under the name that it has there
            start = str(recipe.adapter.init_from)
            tuned.load_adapter(str(adapter_folder(start) or start), "ref")
        models = [tuned]
    for model in models:
        if (reason := score_over_trees(model)) is not None:
            note(f"Trees are off: {reason}.")
        if recipe.adapter.method != "qlora":
            model.to(device)
    return Policies(*models)
