"""Cluster profiles: what a site's Slurm wants to be told, once for all runs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lora_dpo import resources
from lora_dpo.cluster.requeue import Mode
from lora_dpo.errors import UserError, did_you_mean
from lora_dpo.recipe.loading import checked
from lora_dpo.recipe.schema import PositiveInt, Section
from lora_dpo.recipe.types import one_is_a_list
from lora_dpo.recipe.yaml_source import parse_file

_SECRET = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY)(?:_|$)", re.IGNORECASE)
_OWN_FLAGS = {
    "--job-name": "run.name", "-J": "run.name", "--nodes": "slurm.nodes", "-N": "slurm.nodes",
    "--time": "slurm.time", "-t": "slurm.time", "--partition": "partition", "-p": "partition",
    "--account": "account", "-A": "account", "--qos": "qos", "-q": "qos", "--mem": "mem",
    "--gres": "gpu_flag and slurm.gpus_per_node", "--gpus-per-node": "gpu_flag and slurm.gpus_per_node",
    "--cpus-per-task": "cpus_per_gpu", "-c": "cpus_per_gpu", "--cpus-per-gpu": "cpus_per_gpu",
    "--requeue": "requeue", "--no-requeue": "requeue",
    "--array": "`lora-dpo submit --array`", "-a": "`lora-dpo submit --array`", "--output": "", "-o": "",
    "--error": "", "-e": "", "--dependency": "", "-d": "", "--export": "environment", "--chdir": "", "-D": "",
    "--signal": "warn_seconds", "--ntasks": "", "-n": "", "--ntasks-per-node": "", "--wrap": "", "--parsable": "",
    "--open-mode": "",
}  # fmt: skip
"""Flags of sbatch that `lora-dpo submit` writes itself, and the key that says what they are to be."""


class Profile(Section):
    """A cluster: which flags its sbatch wants, what its nodes have, and what its rules are."""

    partition: str | None = Field(None, min_length=1, description="Partition; null is the cluster's default.")
    account: str | None = Field(None, min_length=1, description="Account; null is the user's default.")
    qos: str | None = Field(None, min_length=1, description="Quality of service; null is the user's default.")
    gpu_flag: Literal["gres", "gpus-per-node"] = Field(
        "gpus-per-node", description="How GPUs are asked for: --gres=gpu:N, or --gpus-per-node=N."
    )
    gpu_type: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Kind of GPU, as `sinfo -o %G` names it, such as a100; null is any.",
    )
    gpus_per_node: int | None = Field(
        None, ge=0, description="GPUs that a node has: what a job gets that does not say, and the most it may ask for."
    )
    cpus_per_gpu: PositiveInt = Field(4, description="Processors for each process, with GPUs and without.")
    mem: str | None = Field(
        None,
        pattern=r"^[0-9]+[KMGT]?$",
        description="Memory a node, such as 200G; 0 is all of it; null is the default.",
    )
    setup: str | None = Field(
        None,
        min_length=1,
        description="Shell file that the job sources first, for modules or conda; below ~ or absolute.",
    )
    modules: Annotated[list[str], BeforeValidator(one_is_a_list, json_schema_input_type=str | list[str])] = Field(
        default_factory=list, description="Modules that the job loads, after setup."
    )
    run_with: str | None = Field(
        None, min_length=1, description="Words before each command on a node, such as 'apptainer exec --nv image.sif'."
    )
    scratch: str | None = Field(
        None,
        min_length=1,
        description="Folder that all nodes share and that is large: models, data sets and caches go there; $USER and "
        "such are filled in. null leaves them in the home folder.",
    )
    offline: bool = Field(
        False, description="Nodes have no network: models and data are fetched on the login node, before the job waits."
    )
    requeue: Mode = Field(
        "requeue",
        description="What becomes of a job that is preempted, or that its time ends before it is through: it waits "
        "again (requeue), a next one that waits already goes on (chain), or it ends (never).",
    )
    max_restarts: PositiveInt | None = Field(
        None, description="Most requeues for other reasons than preemption and failed nodes; null is the scripts' own."
    )
    chain: int | None = Field(
        None, ge=2, description="Jobs of a chain, where requeue is chain and --chain is not given."
    )
    warn_seconds: PositiveInt = Field(
        300,
        le=65535,
        description="How long before its end Slurm warns a training, which then saves after the step that it is in; "
        "of a short job never more than a quarter.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Variables of the jobs, such as NCCL_SOCKET_IFNAME: ib0. No secrets."
    )
    sbatch: Annotated[list[str], BeforeValidator(one_is_a_list, json_schema_input_type=str | list[str])] = Field(
        default_factory=list, description="Further flags of sbatch, such as --constraint=a100."
    )

    @field_validator("mem", "environment", mode="before")
    @classmethod
    def _numbers_are_words(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: str(word) if type(word) in (int, float) else word for key, word in value.items()}
        return str(value) if type(value) is int else value

    @field_validator("environment")
    @classmethod
    def _holds_no_secret(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"'{name}' cannot be the name of a variable")
            if is_secret(name):
                raise ValueError(
                    f"the name {name} is that of a secret, which profiles are no place for: put it into .env where you "
                    "submit, which jobs read themselves"
                )
        return value

    @field_validator("sbatch")
    @classmethod
    def _leaves_the_rest_to_submit(cls, value: list[str]) -> list[str]:
        for flag in value:
            name = flag.partition("=")[0]
            if not flag.startswith("-"):
                raise ValueError(f"'{flag}' is no flag; write a flag and its value as one, such as --constraint=a100")
            if name in _OWN_FLAGS:
                key = _OWN_FLAGS[name]
                raise ValueError(f"{name} is written by lora-dpo submit" + (f"; say it by {key}" if key else ""))
        return value

    @model_validator(mode="after")
    def _chain_is_asked_for(self) -> Profile:
        if self.chain is not None and self.requeue != "chain":
            raise ValueError(f"chain {self.chain} has no meaning with requeue {self.requeue}; set requeue: chain")
        return self


def is_secret(name: str) -> bool:
    """Returns whether a variable of this name is likely to hold a secret."""
    return _SECRET.search(name) is not None


def find_profile(name: str | None) -> tuple[Profile, str]:
    """Returns the profile that was asked for, or the user's own, or the generic one.

    Args:
        name: A file, or the name of one in the user's folder or of a shipped one; None is the user's own profile.yaml,
            and where there is none the generic one.

    Returns:
        The profile, and where it was found.

    Raises:
        UserError: There is none of this name, or a value in it is wrong.
    """
    own = user_folder()
    if name is None:
        file = own / "profile.yaml"
        return load_profile(file if file.is_file() else resources.folder("slurm") / "profiles" / "generic.yaml")
    path = Path(name).expanduser()
    if path.is_file():
        return load_profile(path)
    places = (own / "profiles", own, resources.folder("slurm") / "profiles")
    known = {file.stem: file for place in reversed(places) for file in sorted(place.glob("*.yaml"))}
    if name in known:
        return load_profile(known[name])
    raise UserError(
        f"There is no cluster profile {name}.",
        why=f"It is no file, and neither {own / 'profiles'} nor lora-dpo has one of this name.",
        fix=did_you_mean(name, sorted(known)),
    )


def load_profile(file: Path) -> tuple[Profile, str]:
    """Reads a profile.

    Raises:
        UserError: The file cannot be read, or a value in it is wrong.
    """
    values, lines = parse_file(file)
    places = {key: f"{file}:{line}" for key, line in lines.items()}
    return checked(Profile, {key: value for key, value in values.items() if value is not None}, places, str(file)), str(
        file
    )


def user_folder() -> Path:
    """Returns where the user's own profiles are."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "lora-dpo"
