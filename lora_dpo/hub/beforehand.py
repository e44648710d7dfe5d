"""What can be known of a push before there is anything to publish: `lora-dpo run` asks it before days of training."""

from __future__ import annotations

from typing import Literal

from lora_dpo.console import note
from lora_dpo.credentials import load_token
from lora_dpo.errors import UserError
from lora_dpo.hub.base import Base, base_of
from lora_dpo.hub.card import Facts, card_values
from lora_dpo.hub.client import HubError, hub_session
from lora_dpo.hub.licence import config_of, licence_of
from lora_dpo.hub.packing import Wishes, check_base_of_adapter
from lora_dpo.hub.preflight import check_online, check_rights, required_token
from lora_dpo.hub.push import target_of
from lora_dpo.hub.remote import Remote, Target
from lora_dpo.hub.subject import Subject
from lora_dpo.hub.template import check_template
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.stages import stage_recipe


def check_beforehand(recipe: Recipe, *, offline: bool) -> None:
    """Checks names, base, licence and template, and unless the push will only be prepared, the token and its rights.

    Args:
        recipe: What will be trained and published.
        offline: Whether the push will only be prepared, which needs neither token nor network.

    Raises:
        UserError: The push would be refused, or the Hub does not answer and nothing has been trained yet.
    """
    load_token()
    wishes = Wishes().completed(recipe.hub)
    target = target_of(recipe.hub.repo, wishes)
    record = {"stage": recipe.run.stage, "recipe": recipe.model_dump(mode="json")}
    planned = Subject("model", RunFolder.of(recipe).merged, None, record)
    base = base_of(planned, wishes.base)
    licence = licence_of(base.name, config_of(base.folder), base.folder, wishes.licence)
    if wishes.template_file is not None:
        check_template(wishes.template_file, card_values(planned, Facts(target.repo, base.name, licence)))
    if recipe.hub.what == "adapter":
        if recipe.adapter.method == "full":
            raise UserError(
                "hub.what is adapter, but adapter.method full trains the whole model.",
                fix="Set hub.what=auto, or adapter.method=lora.",
            )
        check_base_of_adapter(base)
    if offline:
        return
    try:
        _ask_the_hub(target, base)
    except HubError as said:
        if not (said.is_passing and _has_begun(recipe)):
            raise
        note(f"Whether it may be published is not known yet: {said.what} The run goes on all the same.")


def _has_begun(recipe: Recipe) -> bool:
    """Returns whether there is a run already, which a Hub that is away for an hour must not hold up."""
    stages: tuple[Literal["sft", "dpo"], ...] = ("dpo",) if recipe.sft.path is None else ("sft", "dpo")
    return any(RunFolder.of(stage_recipe(recipe, stage)).is_run for stage in stages)


def _ask_the_hub(target: Target, base: Base) -> None:
    check_online()
    token = required_token()
    with hub_session(token):
        remote = Remote(target, token)
        check_rights(remote)
        if base.name is not None:
            remote.check_base(base.name)
