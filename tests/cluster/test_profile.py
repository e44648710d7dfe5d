"""Cluster profiles: where they are looked for, and what is refused in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo import resources
from lora_dpo.cluster.profile import Profile, find_profile, load_profile
from lora_dpo.errors import UserError

SHIPPED = sorted((resources.folder("slurm") / "profiles").glob("*.yaml"))


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder, empty."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "lora-dpo"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_profile_is_valid_and_found_by_its_name(file: Path) -> None:
    assert find_profile(file.stem) == load_profile(file)


def test_the_generic_one_writes_out_every_default_but_the_rare_ones() -> None:
    generic, _ = load_profile(resources.folder("slurm") / "profiles" / "generic.yaml")
    assert generic == Profile()


def test_the_users_own_comes_before_the_generic_one(own: Path) -> None:
    assert find_profile(None)[1].endswith("profiles/generic.yaml")
    (own / "profile.yaml").write_text("partition: mine\n")
    assert find_profile(None) == (Profile(partition="mine"), str(own / "profile.yaml"))


def test_a_name_means_the_users_file_before_the_shipped_one(own: Path, tmp_path: Path) -> None:
    (own / "gres.yaml").write_text("partition: other\n")
    assert find_profile("gres")[0].partition == "other"
    (own / "profiles").mkdir()
    (own / "profiles" / "gres.yaml").write_text("partition: folder\n")
    assert find_profile("gres")[0].partition == "folder"
    (tmp_path / "x.yaml").write_text("partition: path\n")
    assert find_profile(str(tmp_path / "x.yaml"))[0].partition == "path"


def test_a_misspelt_name_leads_to_the_right_one() -> None:
    with pytest.raises(UserError, match="There is no cluster profile offline_chian") as error:
        find_profile("offline_chian")
    assert "Did you mean 'offline_chain'?" in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partitoin: x", "bad.yaml:1: unknown key 'partitoin'. Did you mean 'partition'?"),
        ("offline: true\nmem: lots", "bad.yaml:2: mem: 'lots' cannot be used."),
        ("requeue: requeu", "requeue: 'requeu' is not one of 'requeue', 'chain' or 'never'. Did you mean 'requeue'?"),
        ("gpu_flag: gpus_per_node", "Did you mean 'gpus-per-node'?"),
        ("chain: 3", "chain 3 has no meaning with requeue requeue; set requeue: chain"),
        ("sbatch: [--nodes=3]", "--nodes is written by lora-dpo submit; say it by slurm.nodes"),
        ("sbatch: [--gres=gpu:3]", "say it by gpu_flag and slurm.gpus_per_node"),
        ("sbatch: [--cpus-per-gpu=8]", "say it by cpus_per_gpu"),
        ("sbatch: [--cpus-per-task=8]", "say it by cpus_per_gpu"),
        ("sbatch: ['--signal=B:USR1@900']", "say it by warn_seconds"),
        ("warn_seconds: 0", "warn_seconds: input should be greater than or equal to 1, not 0"),
        ("sbatch: [constraint a100]", "'constraint a100' is no flag"),
        ("environment: {HF_TOKEN: x}", "the name HF_TOKEN is that of a secret"),
        ("environment: {WANDB_API_KEY: x}", "the name WANDB_API_KEY is that of a secret"),
        ("environment: {'A B': x}", "'A B' cannot be the name of a variable"),
        ("gpus_per_node: -1", "gpus_per_node: input should be greater than or equal to 0, not -1"),
    ],
)
def test_mistakes_are_refused_with_their_place(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_profile(file)
    assert words in str(error.value)


def test_numbers_may_stand_without_quotes(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("mem: 0\nmodules: gcc\nenvironment: {NCCL_IB_DISABLE: 1, NCCL_SOCKET_IFNAME: ib0}\n")
    profile, _ = load_profile(file)
    assert (profile.mem, profile.modules) == ("0", ["gcc"])
    assert profile.environment == {"NCCL_IB_DISABLE": "1", "NCCL_SOCKET_IFNAME": "ib0"}
