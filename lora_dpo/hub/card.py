"""The model card: metadata in the Hub's conventions, and a page from what provenance and report say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from lora_dpo.errors import UserError
from lora_dpo.evaluation import tables
from lora_dpo.evaluation.page import example_line, one_line
from lora_dpo.hub.documents import read_json
from lora_dpo.hub.licence import Licence
from lora_dpo.hub.results import data_sets, evaluation_results
from lora_dpo.hub.selection import MERGE_REPORT, has_tokenizer
from lora_dpo.hub.subject import TRAINING, Subject, read_report
from lora_dpo.hub.template import check_metadata, render
from lora_dpo.merging.report import agreement_rows
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.stages import UNITS

_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_WORSE_SHOWN = 3
_SAMPLES_SHOWN = 2
_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "deepspeed", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card is made of, besides what is published.

    Attributes:
        repo: The repository, `user/name`.
        base: What the card calls the base model: a Hub id where one is known.
        licence: The licence.
    """

    repo: str
    base: str | None
    licence: Licence


def render_card(subject: Subject, facts: Facts, template: Path | None = None) -> str:
    """Returns the card.

    Args:
        subject: What is published.
        facts: Where to, on what base, and under which licence.
        template: The user's own template, instead of the package's; it is given the same values.

    Raises:
        UserError: The template cannot be read, has a mistake, or names a value that there is not; or the Hub would not
            take the metadata.
    """
    try:
        values = card_values(subject, facts)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"What {subject.folder} says of its training, its merging or its results is not whole: "
            f"{type(error).__name__}: {error}.",
            fix="Copy it again from where it was made.",
        ) from error
    card = render(template or _TEMPLATE, values)
    check_metadata(card, facts.licence)
    return card


def card_values(subject: Subject, facts: Facts) -> dict[str, Any]:
    """Returns the values that a template is given; docs/hub.md lists them.

    Args:
        subject: What is published.
        facts: Where to, on what base, and under which licence.
    """
    recipe, report, training = subject.recipe, read_report(subject), subject.training
    merge = subject.record if (subject.record or {}).get("stage") == "merge" else None
    merge_report = _merge_report(subject) if merge is not None else None
    return {
        "card_data": _metadata(subject, facts, recipe, report),
        "repo": facts.repo,
        "name": facts.repo.rpartition("/")[2],
        "kind": subject.kind,
        "base": facts.base,
        "base_is_on_the_hub": facts.base is not None,
        "tokenizer": facts.repo if _has_tokenizer(subject) else facts.base or facts.repo,
        "chat": _is_chat(subject, recipe),
        "method": None if recipe is None else recipe.adapter.method,
        "adapter_kind": _adapter_kind(subject, recipe) if subject.kind == "adapter" else None,
        "recipe": None if recipe is None else recipe.model_dump(mode="json"),
        "report": report,
        "provenance": training,
        "merge": merge,
        "merge_report": merge_report,
        "merge_rows": [] if merge_report is None else list(agreement_rows(merge_report)),
        "licence": facts.licence,
        "training_rows": list(_training_rows(recipe, report, training)),
        "data_rows": list(_data_rows(report)),
        "sources": [] if recipe is None else _sources(recipe),
        "headings": tables.HEADINGS,
        "result_rows": tables.rows(report) if report else [],
        "counts": tables.counts(report) if report else "",
        "remarks": list(tables.remarks(report)) if report else [],
        "worse": [example_line(example) for example in (report or _NOTHING)["examples"]["worse"]][:_WORSE_SHOWN],
        "samples": [
            {key: one_line(text) for key, text in sample.items()} for sample in (report or _NOTHING)["samples"]
        ][:_SAMPLES_SHOWN],
        "pictures": _pictures(subject),
        "has_recipe": subject.run is not None or (subject.folder / TRAINING / "recipe.yaml").is_file(),
        "versions": _versions(subject.record),
    }


_NOTHING: dict[str, Any] = {"examples": {"worse": []}, "samples": []}


def _metadata(subject: Subject, facts: Facts, recipe: Recipe | None, report: Mapping[str, Any] | None) -> ModelCardData:
    results = evaluation_results(report, recipe)
    further: dict[str, Any] = {}
    if facts.base is not None and (subject.kind == "adapter" or subject.record is not None):
        further["base_model_relation"] = "adapter" if subject.kind == "adapter" else "finetune"
    return ModelCardData(
        base_model=facts.base,
        datasets=data_sets(recipe) or None,
        library_name="peft" if subject.kind == "adapter" else "transformers",
        license=facts.licence.identifier,
        license_name=facts.licence.name,
        license_link=facts.licence.link,
        pipeline_tag="text-generation",
        tags=_tags(subject, recipe) or None,
        model_name=facts.repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
        **further,
    )


def _tags(subject: Subject, recipe: Recipe | None) -> list[str]:
    """Returns what is known of how it was made; of what was made elsewhere nothing is."""
    if recipe is None:
        return [] if subject.record is None else ["lora-dpo"]
    stages = ["dpo"] * (recipe.run.stage == "dpo") + ["sft"] * (recipe.sft.path is not None)
    method = [] if recipe.adapter.method == "full" else [recipe.adapter.method]
    return [*stages, *method, "alignment", "lora-dpo"]


def _training_rows(
    recipe: Recipe | None, report: Mapping[str, Any] | None, record: Mapping[str, Any] | None
) -> Iterator[tuple[str, str]]:
    if recipe is not None:
        adapter, train, dpo = recipe.adapter, recipe.train, recipe.dpo
        yield "stage", "SFT" if recipe.run.stage == "sft" else "SFT, then DPO" if recipe.sft.path else "DPO"
        if adapter.method == "full":
            yield "method", "the whole model"
        else:
            targets = adapter.targets if isinstance(adapter.targets, str) else ", ".join(adapter.targets)
            kinds = "".join([", DoRA" * adapter.dora, ", rsLoRA" * adapter.rslora])
            yield (
                "method",
                f"{'QLoRA' if adapter.method == 'qlora' else 'LoRA'}{kinds}, r {adapter.r}, alpha {adapter.alpha:g}",
            )
            yield "layers", targets
        if recipe.run.stage == "dpo":
            yield "loss", f"{' + '.join(dpo.loss)}, beta {dpo.beta:g}"
        yield "learning rate", f"{train.learning_rate:g}, {train.scheduler}, warm-up {train.warmup:g}"
        yield "batch", f"{train.global_batch_size} {UNITS[recipe.run.stage]} a step"
        yield "epochs", f"{train.epochs:g}" if train.max_steps is None else f"{train.max_steps} steps"
        yield "longest sequence", f"{dpo.max_length if recipe.run.stage == 'dpo' else recipe.sft.max_length} tokens"
        yield "seed", str(recipe.run.seed)
    if report is not None and report.get("training"):
        training = report["training"]
        yield "steps", f"{training['steps']}, in {training['seconds'] / 60:.1f} minutes"
    if record is not None and "strategy" in record:
        processes = record.get("world_size", 1)
        yield "hardware", f"{processes} x {record.get('device', 'unknown')}, {record['strategy']}, {record['dtype']}"


def _data_rows(report: Mapping[str, Any] | None) -> Iterator[tuple[str, str, str, str]]:
    for split, found in ((report or {}).get("data") or {}).get("splits", {}).items():
        count = found.get("pairs", found.get("examples", 0))
        yield split, str(count), str(found["groups"]), found["hash"]


def _sources(recipe: Recipe) -> list[str]:
    section = recipe.sft if recipe.run.stage == "sft" else recipe.data
    return [source.path for source in section.sources()]


def _pictures(subject: Subject) -> dict[str, str | None]:
    """Returns the pictures by name, as they stand in the repository; None of those that were not drawn."""
    folder = subject.folder / TRAINING / "plots" if subject.run is None else subject.run.plots
    files = {name: folder / f"{name}.png" for name in ("evaluation", "training")}
    return {name: f"{TRAINING}/plots/{file.name}" if file.is_file() else None for name, file in files.items()}


def _merge_report(subject: Subject) -> dict[str, Any] | None:
    file = subject.folder / MERGE_REPORT
    return read_json(file) if file.is_file() else None


def _has_tokenizer(subject: Subject) -> bool:
    return subject.folder.is_dir() and has_tokenizer(file.name for file in subject.folder.iterdir())


def _adapter_kind(subject: Subject, recipe: Recipe | None) -> str:
    """Returns what kind of adapter it is: as it was trained, else as PEFT calls it."""
    if recipe is not None:
        return "QLoRA" if recipe.adapter.method == "qlora" else "LoRA"
    kind = str(read_json(subject.folder / "adapter_config.json").get("peft_type") or "PEFT")
    return "LoRA" if kind == "LORA" else kind


def _is_chat(subject: Subject, recipe: Recipe | None) -> bool:
    if recipe is not None and recipe.model.template == "plain":
        return False
    config = subject.folder / "tokenizer_config.json"
    return (subject.folder / "chat_template.jinja").is_file() or (
        config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8", errors="replace")
    )


def _versions(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    packages, code = record.get("packages", {}), record.get("code", {})
    known = [f"{name} {packages[name]}" for name in _PACKAGES if name in packages]
    commit = f" ({code['commit']})" if code.get("commit") else ""
    return ", ".join([f"lora-dpo {code.get('version', '')}{commit}", f"Python {record.get('python', '')}", *known])
