from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from lora_dpo import resources
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.schema import AdapterSection, DataSection, DPOSection, Recipe, Source, Strategy
from lora_dpo.recipe.yaml_source import parse_file

SHIPPED = sorted(resources.folder("recipes").glob("*.yaml"))


def sections(model: type[BaseModel] = Recipe) -> set[type[BaseModel]]:
    found = {model}
    for field in model.model_fields.values():
        for part in flattened(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel) and part not in found:
                found |= sections(part)
    return found


def flattened(annotation: Any) -> list[Any]:
    return [annotation, *(part for argument in get_args(annotation) for part in flattened(argument))]


def test_every_key_and_section_is_described() -> None:
    assert len(sections()) >= 14
    for section in sections():
        assert section.__doc__
        assert section.__doc__.strip() != BaseModel.__doc__
        for name, field in section.model_fields.items():
            description = field.description or ""
            assert len(description) > 7, f"{section.__name__}.{name}"
            assert description.endswith("."), f"{section.__name__}.{name}"


def test_every_section_refuses_unknown_keys_and_changes() -> None:
    for section in sections():
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["frozen"] is True


def test_every_strategy_has_its_launch_configuration() -> None:
    files = {file.stem for file in resources.folder("accelerate_configs").glob("*.yaml")}
    assert set(get_args(Strategy)) - {"auto"} <= files


def resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def problems(schema: dict[str, Any], node: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """Checks a value against the parts of JSON schema that pydantic writes for recipes."""
    node = resolve(schema, node)
    if "anyOf" in node:
        tried = [problems(schema, branch, value, path) for branch in node["anyOf"]]
        return [] if [] in tried else min(tried, key=len)
    found = []
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    kind = node.get("type")
    if kind == "null" and value is not None:
        return [f"{path} is not null"]
    if kind in types and (not isinstance(value, types[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{path} is no {kind}: {value!r}"]
    if "enum" in node and value not in node["enum"]:
        found.append(f"{path} is not in {node['enum']}")
    if "const" in node and value != node["const"]:
        found.append(f"{path} is not {node['const']}")
    if kind == "object" and "properties" in node:
        assert node["additionalProperties"] is False
        found += [f"{path}.{key} is missing" for key in node.get("required", []) if key not in value]
        for key, entry in value.items():
            if key not in node["properties"]:
                found.append(f"{path}.{key} is unknown")
            else:
                found += problems(schema, node["properties"][key], entry, f"{path}.{key}")
    if kind == "array":
        found += [p for i, entry in enumerate(value) for p in problems(schema, node["items"], entry, f"{path}.{i}")]
    return found


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_json_schema_accepts_what_recipes_resolve_to(file) -> None:
    schema = Recipe.model_json_schema()
    values = load_recipe(file).model_dump(mode="json")
    assert problems(schema, schema, values) == []
    assert problems(schema, schema, {**values, "trian": {}}) == [".trian is unknown"]
    assert problems(schema, schema, {**values, "dpo": {"loss": ["sigmod"]}}) != []
    assert problems(schema, schema, {key: value for key, value in values.items() if key != "model"}) == [
        ".model is missing"
    ]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_json_schema_accepts_what_people_write(file) -> None:
    """An editor that checks a shipped recipe against the schema has nothing to underline."""
    schema = Recipe.model_json_schema()
    written, _ = parse_file(file)
    assert problems(schema, schema, written) == []
    assert (
        problems(schema, schema, {**written, "adapter": {"targets": "c_attn"}, "train": {"report_to": "wandb"}}) == []
    )
    assert problems(schema, schema, {**written, "adapter": {"targets": 5}}) != []


def test_the_json_schema_describes_every_key() -> None:
    schema = Recipe.model_json_schema()
    described = [
        (name, key)
        for name, section in [("Recipe", schema), *schema["$defs"].items()]
        for key, entry in section["properties"].items()
        if not (entry.get("description") or resolve(schema, entry).get("description"))
    ]
    assert described == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": ["sigmoid", "sft"], "loss_weights": [1.0]}, "loss_weights has 1 entries for 2 losses"),
        ({"loss": "exo_pair"}, "exo_pair needs label_smoothing > 0; its paper recommends 0.001"),
        ({"loss": "aot", "use_weighting": True}, "use_weighting cannot be combined with aot"),
        ({"loss": ["sigmoid", "aot_unpaired"], "use_weighting": True}, "use_weighting cannot be combined with aot"),
        ({"loss": ["nca_pair", "bco_pair"], "f_divergence": "js_divergence"}, "no meaning for bco_pair, nca_pair"),
        ({"loss": "sigmoid", "label_smoothing": 0.5}, "less than 0.5"),
        ({"loss": "sigmoid", "beta": 0}, "greater than 0"),
        ({"ld_alpha": 1.1}, "less than or equal to 1"),
    ],
)
def test_losses_that_do_not_fit_together_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DPOSection.model_validate(values)


@pytest.mark.parametrize(
    "values",
    [
        {"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        {"loss": "exo_pair", "label_smoothing": 0.001},
        {"loss": "aot"},
        {"loss": "sigmoid", "use_weighting": True},
        {"loss": "sigmoid", "f_divergence": "js_divergence"},
        {"loss": "nca_pair", "f_divergence": "reverse_kl"},
    ],
)
def test_losses_that_fit_together_are_taken(values: dict[str, Any]) -> None:
    loss = DPOSection.model_validate(values).loss
    assert loss == ([values["loss"]] if isinstance(values["loss"], str) else values["loss"])


@pytest.mark.parametrize("values", [{"init_from": "runs/x"}, {"dropout": 0.1}])
def test_full_training_has_no_adapter_to_continue_or_drop(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="method 'full' has no adapter"):
        AdapterSection.model_validate({"method": "full", **values})
    assert AdapterSection.model_validate({"method": "lora", **values})


@pytest.mark.parametrize(
    ("method", "strategy", "message"),
    [
        ("qlora", "zero3", "qlora cannot run under zero3, which cannot shard"),
        ("qlora", "zero3_offload", "qlora cannot run under zero3_offload"),
        ("qlora", "fsdp2", "qlora cannot run under fsdp2, which would leave the 4-bit weights whole"),
        ("qlora", "zero2", None),
        ("lora", "fsdp2", None),
        ("lora", "qlora", "train.strategy qlora needs adapter.method qlora"),
        ("qlora", "qlora", None),
        ("qlora", "ddp", None),
        ("lora", "zero3", None),
    ],
)
def test_method_and_strategy_fit_together(method: str, strategy: str, message: str | None) -> None:
    values = {
        "model": {"name": "m"},
        "run": {"name": "r"},
        "adapter": {"method": method},
        "train": {"strategy": strategy},
    }
    if message is None:
        assert Recipe.model_validate(values).train.strategy == strategy
    else:
        with pytest.raises(ValidationError, match=message):
            Recipe.model_validate(values)


def test_a_reference_that_moves_is_computed_live() -> None:
    values = {"model": {"name": "m"}, "run": {"name": "r"}, "train": {"trl": {"sync_ref_model": True}}}
    with pytest.raises(ValidationError, match=r"train\.trl\.sync_ref_model moves the reference"):
        Recipe.model_validate(values)
    assert Recipe.model_validate({**values, "dpo": {"reference": "live"}}).dpo.reference == "live"


def with_sections(**sections: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"model": {"name": "m"}, "run": {"name": "r"}, **sections})


@pytest.mark.parametrize("train", [{"tokens_per_micro_batch": 900}, {"weight": "group"}])
@pytest.mark.parametrize("loss", ["aot", "aot_unpaired", "sft"])
def test_losses_that_are_no_mean_over_pairs_need_equally_many(loss: str, train: dict[str, Any]) -> None:
    for losses in ([loss], ["sigmoid", loss]):
        with pytest.raises(ValidationError, match=f"{loss} is no mean over pairs.*use train.micro_batch_size and"):
            with_sections(dpo={"loss": losses}, train=train)
        assert with_sections(dpo={"loss": losses}, train={"micro_batch_size": 2, "weight": "pair"})
    assert with_sections(dpo={"loss": "ipo"}, train=train)


def test_a_step_is_cut_in_one_way() -> None:
    both = {"micro_batch_size": 2, "tokens_per_micro_batch": 900}
    with pytest.raises(ValidationError, match="both say how a step is cut; set one to null"):
        with_sections(train=both)
    for key in both:
        assert with_sections(train=both | {key: None}).train.model_dump()[key] is None


def test_trees_and_dropout_do_not_go_together() -> None:
    words = "train.trees on does not go with adapter.dropout 0.1.*use train.trees auto, or adapter.dropout 0"
    with pytest.raises(ValidationError, match=words):
        with_sections(train={"trees": "on"}, adapter={"dropout": 0.1})
    assert with_sections(train={"trees": "on"}).train.trees == "on"
    assert with_sections(train={"trees": "off"}, adapter={"dropout": 0.1}).train.trees == "off"
    assert with_sections(adapter={"dropout": 0.1}).train.trees == "auto"


def test_sources_are_a_list_however_they_were_written() -> None:
    a, b = Source(path="a"), Source(path="b", weight=2)
    assert DataSection(path="a").sources() == [a]
    assert DataSection(path=["a", b]).sources() == [a, b]
    assert DataSection().sources() == [Source(path="bundled/misconceptions")]
