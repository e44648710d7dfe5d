"""The model card: metadata in the Hub's conventions, and a page from what provenance and report say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from lora_dpo.errors import UserError
from lora_dpo.evaluation import tables
from lora_dpo.evaluation.page import example_line, one_line
from lora_dpo.hub.licence import Licence
from lora_dpo.hub.results import data_sets, evaluation_results, is_hub_name
from lora_dpo.hub.subject import TRAINING, Subject, read_report
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
        UserError: The template cannot be read, has a mistake, or names a value that there is not.
    """
    return render(template or _TEMPLATE, card_values(subject, facts))


def render(template: Path, values: Mapping[str, Any]) -> str:
    """Returns a page of a Jinja template.

    Args:
        template: The file.
        values: What it may name.

    Raises:
        UserError: The template cannot be read, has a mistake, or names a value that there is not.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    try:
        return environment.from_string(template.read_text(encoding="utf-8")).render(values)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The template {template} cannot be read: {error}.", fix="Correct --template.") from None
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"The template has a mistake: {error.message}.", where=f"{template}:{error.lineno}") from None
    except jinja2.TemplateError as error:
        raise UserError(
            f"The template cannot be filled in: {error.message}.",
            fix=f"It may name: {', '.join(sorted(values))}.",
            where=str(template),
        ) from None


def card_values(subject: Subject, facts: Facts) -> dict[str, Any]:
    """Returns the values that a template is given; docs/hub.md lists them.

    Args:
        subject: What is published.
        facts: Where to, on what base, and under which licence.
    """
    recipe, report, training = subject.recipe, read_report(subject), subject.training
    method = recipe.adapter.method if recipe is not None else "lora"
    return {
        "card_data": _metadata(subject, facts, recipe, report),
        "repo": facts.repo,
        "name": facts.repo.rpartition("/")[2],
        "kind": subject.kind,
        "base": facts.base,
        "base_is_on_the_hub": facts.base is not None and is_hub_name(facts.base),
        "chat": _is_chat(subject, recipe),
        "method": method,
        "recipe": None if recipe is None else recipe.model_dump(mode="json"),
        "report": report,
        "provenance": training,
        "merge": subject.record if (subject.record or {}).get("stage") == "merge" else None,
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
    stages = ["dpo"] if recipe is None or recipe.run.stage == "dpo" else []
    stages += ["sft"] if recipe is not None and recipe.sft.path is not None else []
    method = [] if recipe is None or recipe.adapter.method == "full" else [recipe.adapter.method]
    on_hub = facts.base is not None and is_hub_name(facts.base)
    results = evaluation_results(report, recipe)
    further: dict[str, Any] = {}
    if on_hub:
        further["base_model_relation"] = "adapter" if subject.kind == "adapter" else "finetune"
    return ModelCardData(
        base_model=facts.base if on_hub else None,
        datasets=data_sets(recipe) or None,
        library_name="peft" if subject.kind == "adapter" else "transformers",
        license=facts.licence.identifier,
        license_name=facts.licence.name,
        license_link=facts.licence.link,
        pipeline_tag="text-generation",
        tags=[*stages, *method, "alignment", "lora-dpo"],
        model_name=facts.repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
        **further,
    )


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


def _is_chat(subject: Subject, recipe: Recipe | None) -> bool:
    if recipe is not None and recipe.model.template == "plain":
        return False
    config = subject.folder / "tokenizer_config.json"
    return (subject.folder / "chat_template.jinja").is_file() or (
        config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8")
    )


def _versions(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    packages, code = record.get("packages", {}), record.get("code", {})
    known = [f"{name} {packages[name]}" for name in _PACKAGES if name in packages]
    commit = f" ({code['commit']})" if code.get("commit") else ""
    return ", ".join([f"lora-dpo {code.get('version', '')}{commit}", f"Python {record.get('python', '')}", *known])


def _cell(text: Any) -> str:
    """Returns a text that does not end a table's cell."""
    return str(text).replace("|", "\\|").replace("\n", " ")
