"""The exact command lines of a recipe's jobs, and what they are given."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lora_dpo.cluster.planning import Frozen, Plan, Size, caches, plan_jobs, plan_table, size_of
from lora_dpo.cluster.profile import Profile, find_profile
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import Recipe

FROZEN = Frozen(Path("/w/runs/r/slurm/code"), Path("/w/runs/r/slurm/recipe.yaml"), None)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works in a folder whose name stands for itself in the golden lines."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "LORA_DPO_CACHE"):
        monkeypatch.delenv(name, raising=False)


def recipe(**slurm: object) -> Recipe:
    sections = {"model": {"name": "m"}, "run": {"name": "r"}, "sft": {"path": "a.csv"}, "hub": {"repo": "me/r"}}
    return Recipe.model_validate({**sections, "slurm": slurm})


def lines(plan: Plan, *, numbers: tuple[str, ...] = ("1", "2", "3", "4", "5", "6")) -> list[str]:
    """Returns the command lines, with CWD for the working directory."""
    return [job.line(numbers).replace(str(Path.cwd()), "CWD") for job in plan.jobs]


def words(plan: Plan, place: int = 0) -> list[str]:
    return shlex.split(lines(plan)[place])


def test_golden_lines_of_four_steps_on_a_site_with_gres() -> None:
    profile, _ = find_profile("gres")
    plan = plan_jobs(recipe(nodes=2, time="12:00:00"), profile, ["sft", "dpo", "merge", "push"], FROZEN)
    site = "--mem=0 --partition=gpu --account=my-project --requeue"
    training = (
        "--nodes=2 --ntasks-per-node=1 --time=12:00:00 --signal=B:USR1@300 "
        f"--gpus-per-node=0 --gres=gpu:a100:4 --cpus-per-task=32 {site}"
    )
    after = (
        "--nodes=1 --ntasks-per-node=1 --time=02:00:00 --signal=B:USR1@60 "
        f"--gpus-per-node=0 --gres=gpu:a100:1 --cpus-per-task=8 {site}"
    )

    def start(step: str) -> str:
        log = f"CWD/runs/r/slurm/logs/{step}-%j.out"
        return f"sbatch --parsable --job-name=r-{step} --chdir=CWD --output={log} --open-mode=append --export=ALL"

    kill = "--kill-on-invalid-dep=yes"
    code = "/w/runs/r/slurm/code/slurm"
    assert lines(plan) == [
        f"{start('sft')} {training} {code}/train.sbatch /w/runs/r/slurm/recipe.yaml",
        f"{start('dpo')} {training} --dependency=afterok:1 {kill} {code}/train.sbatch /w/runs/r/slurm/recipe.yaml",
        f"{start('merge')} {after} --dependency=afterok:2 {kill} {code}/stage.sbatch merge runs/r -o runs/r/merged",
        f"{start('push')} {after} --dependency=afterok:3 {kill} {code}/stage.sbatch push runs/r me/r --yes",
    ]


def test_gpus_by_the_other_flag_and_a_container() -> None:
    profile, _ = find_profile("gpus_per_node")
    plan = plan_jobs(recipe(), profile, ["dpo"], FROZEN)
    assert "--gpus-per-node=h100:8" in words(plan)
    assert "--cpus-per-task=96" in words(plan)
    assert {"--qos=low", "--mem=1500G", "--exclusive", "--requeue"} <= set(words(plan))
    assert not [word for word in words(plan) if word.startswith("--gres")]
    assert plan.jobs[0].environment["LORA_DPO_RUN_WITH"].startswith("apptainer exec --nv")


def test_the_recipe_says_more_than_the_profile() -> None:
    profile = Profile(partition="p", account="a", qos="q", gpus_per_node=8)
    plan = plan_jobs(recipe(partition="other", account="mine", qos="high", gpus_per_node=2), profile, ["dpo"], FROZEN)
    assert {"--partition=other", "--account=mine", "--qos=high", "--gpus-per-node=2"} <= set(words(plan))


def test_without_gpus_processes_are_asked_for_by_a_variable() -> None:
    plan = plan_jobs(recipe(gpus_per_node=0, processes_per_node=2, nodes=2), Profile(), ["dpo", "merge"], FROZEN)
    assert "--gpus-per-node=0" in words(plan)
    assert "--cpus-per-task=8" in words(plan)
    assert not [word for word in words(plan) if "gres" in word]
    assert plan.jobs[0].environment["PROCESSES_PER_NODE"] == "2"
    assert "PROCESSES_PER_NODE" not in plan.jobs[1].environment
    assert plan.size == Size(2, 0, 2)
    assert plan.size.world == 4


def test_each_process_gets_processors_where_the_profile_says_nothing() -> None:
    plan = plan_jobs(recipe(gpus_per_node=8), Profile(), ["dpo", "merge"], FROZEN)
    assert "--cpus-per-task=32" in words(plan)
    assert "--cpus-per-task=4" in words(plan, 1)


@pytest.mark.parametrize(
    ("time", "profile", "signals"),
    [
        ("04:00:00", {}, (300, 60)),
        ("04:00:00", {"warn_seconds": 900}, (900, 60)),
        ("00:06:00", {}, (90, 60)),  # five minutes would be over before the first step
        ("00:02:00", {"warn_seconds": 900}, (30, 30)),
    ],
)
def test_a_warning_comes_in_time_but_not_as_the_job_begins(
    time: str, profile: dict[str, int], signals: tuple[int, int]
) -> None:
    plan = plan_jobs(recipe(time=time), Profile(**profile), ["dpo", "merge"], FROZEN)
    for place, seconds in enumerate(signals):
        assert f"--signal=B:USR1@{seconds}" in words(plan, place)


def test_golden_environment() -> None:
    profile = Profile(
        offline=True, requeue="chain", max_restarts=5, scratch="/scratch/me", environment={"NCCL_SOCKET_IFNAME": "ib0"}
    )
    job = plan_jobs(recipe(), profile, ["dpo"], FROZEN, chain=2).jobs[0]
    chain = job.environment["LORA_DPO_CHAIN"]
    assert job.environment == {
        "PYTHONSAFEPATH": "1",
        "LORA_DPO_STAGE": "dpo",
        "LORA_DPO_RUN": str(Path.cwd() / "runs" / "r"),
        "LORA_DPO_CODE": "/w/runs/r/slurm/code",
        "LORA_DPO_REQUEUE": "chain",
        "LORA_DPO_CHAIN": chain,
        "LORA_DPO_MAX_RESTARTS": "5",
        "LORA_DPO_OFFLINE": "1",
        "HF_HUB_CACHE": "/scratch/me/huggingface/hub",
        "HF_DATASETS_CACHE": "/scratch/me/huggingface/datasets",
        "LORA_DPO_CACHE": "/scratch/me/lora-dpo",
        "NCCL_SOCKET_IFNAME": "ib0",
    }


def test_a_chain_waits_for_its_own_end_and_never_begins_after_a_failure_before_it() -> None:
    plan = plan_jobs(recipe(), Profile(requeue="chain"), ["sft", "dpo", "merge"], FROZEN, chain=2)
    depends = [[word for word in words(plan, place) if word.startswith("--dep")] for place in range(5)]
    assert depends == [
        [],
        ["--dependency=afterany:1"],
        ["--dependency=afterok:2"],
        ["--dependency=afterok:2,afterany:3"],
        ["--dependency=afterok:4"],
    ]
    assert [job.step for job in plan.jobs] == ["sft", "sft", "dpo", "dpo", "merge"]
    chains = [job.environment.get("LORA_DPO_CHAIN") for job in plan.jobs]
    assert chains[0] == chains[1]
    assert chains[2] == chains[3] != chains[0]
    assert chains[4] is None
    assert all("--no-requeue" in words(plan, place) for place in range(5))
    # The last job of a chain, and one that is in none, has no next job to leave anything to.
    assert [job.environment["LORA_DPO_REQUEUE"] for job in plan.jobs] == ["chain", "never", "chain", "never", "never"]


def test_without_a_next_job_nothing_is_left_to_it() -> None:
    plan = plan_jobs(recipe(), Profile(requeue="chain"), ["dpo", "merge"], FROZEN)
    table = plan_table(plan, Path("/w/runs/r-sweep-beta"), [0])
    assert {job.environment["LORA_DPO_REQUEUE"] for job in (*plan.jobs, table)} == {"never"}
    assert plan_jobs(recipe(), Profile(), ["merge"], FROZEN).jobs[0].environment["LORA_DPO_REQUEUE"] == "requeue"


def test_offline_a_push_is_prepared() -> None:
    plan = plan_jobs(recipe(), Profile(offline=True), ["push"], FROZEN)
    assert words(plan)[-5:] == ["push", "runs/r", "me/r", "--yes", "--prepare"]


def test_a_percent_sign_in_a_path_is_no_pattern(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "100%j"
    folder.mkdir()
    monkeypatch.chdir(folder)
    output = next(word for word in words(plan_jobs(recipe(), Profile(), ["dpo"], FROZEN)) if "output" in word)
    assert output == "--output=CWD/runs/r/slurm/logs/dpo-%j.out".replace("CWD", str(folder).replace("%", "%%"))


def test_the_job_that_compares_a_sweep_waits_for_the_end_of_all() -> None:
    plan = plan_jobs(recipe(gpus_per_node=4), Profile(), ["dpo"], FROZEN)
    table = plan_table(plan, Path("/w/runs/r-sweep-beta"), [0, 2])
    found = table.command(["11", "12", "13"], "--parsable")
    assert "--dependency=afterany:11:13" in found
    assert "--job-name=r-sweep-beta-sweep" in found
    assert "--output=/w/runs/r-sweep-beta/slurm/logs/sweep-%j.out" in found
    assert found[-2:] == ["sweep", "/w/runs/r-sweep-beta"]
    assert table.environment["LORA_DPO_RUN"] == "/w/runs/r-sweep-beta"


@pytest.mark.parametrize(
    ("asked", "has", "size"),
    [
        ({}, None, Size(1, 1, 1)),
        ({}, 4, Size(1, 4, 4)),
        ({}, 0, Size(1, 0, 1)),
        ({"gpus_per_node": 2, "nodes": 3}, 4, Size(3, 2, 2)),
        ({"gpus_per_node": 0, "processes_per_node": 3}, 4, Size(1, 0, 3)),
    ],
)
def test_sizes(asked: dict[str, int], has: int | None, size: Size) -> None:
    assert size_of(recipe(**asked), Profile(gpus_per_node=has)) == size


def test_more_gpus_than_a_node_has_are_refused() -> None:
    with pytest.raises(UserError, match="slurm.gpus_per_node is 8, but by the profile a node has 4") as error:
        size_of(recipe(gpus_per_node=8), Profile(gpus_per_node=4))
    assert "--gpus-per-node 4 and more --nodes" in str(error.value)
    with pytest.raises(UserError, match="processes_per_node is 2, with 4 GPUs a node"):
        size_of(recipe(gpus_per_node=4, processes_per_node=2), Profile())


def test_scratch_is_filled_in_and_must_be_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJECT", "/p")
    monkeypatch.setenv("HF_HUB_CACHE", "/mine")
    found = caches(Profile(scratch="$PROJECT/x"))
    assert (found["HF_HUB_CACHE"], found["LORA_DPO_CACHE"]) == ("/mine", "/p/x/lora-dpo")
    for scratch in ("$NOWHERE/x", "scratch"):
        with pytest.raises(UserError, match="The profile's scratch is"):
            caches(Profile(scratch=scratch))
