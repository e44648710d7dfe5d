"""`lora-dpo submit`, `status`, `logs` and `cancel` on a real Slurm.

All runs are submitted first, side by side; the tests then look at what became of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_dpo.recipe.loading import load_recipe
from tests.hub.conftest import TOKEN
from tests.hub.server import Hub, User
from tests.process import ROOT, run_python
from tests.slurm.cluster import Cluster
from tests.slurm.login import Login

HUB_KEYS = ("hub.base_model=me/tiny", "hub.license=apache-2.0")


@pytest.fixture(scope="module")
def login(cluster: Cluster, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Login:
    """A user in a folder whose name has a space, who publishes on the tests' Hub."""
    folder = tmp_path_factory.mktemp("login") / "my runs"
    folder.mkdir()
    caches = {"LORA_DPO_CACHE": str(folder / "cache"), "XDG_CONFIG_HOME": str(folder / "config")}
    return Login(cluster, folder, {**caches, "HF_ENDPOINT": hub.url})


@pytest.fixture(scope="module")
def model(tiny_models) -> Path:
    """A tiny model in a folder that all nodes see."""
    return tiny_models("llama")


@pytest.fixture(scope="module")
def hub(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub on the login node, which nodes reach by the cluster's own network, though they have no way out of it."""
    found = re.search(r"SlurmctldHost\S*\s*=\s*\S+\((.+?)\)", cluster.run("scontrol", "show", "config"))
    server = Hub(tmp_path_factory.mktemp("hub"), {TOKEN: User("me")}, host=found[1] if found else "127.0.0.1").start()
    server.repository("me/tiny").create(private=False)  # the base that cards name
    yield server
    server.stop()


@pytest.fixture(scope="module")
def online(login: Login, hub: Hub) -> Login:
    """The same user with a way to that Hub, and the token in .env alone."""
    folder = login.folder / "online"
    folder.mkdir()
    (folder / ".env").write_text(f"ACCESS_TOKEN={TOKEN}\n")
    reach = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home")}
    return Login(login.cluster, folder, {**login.environment, **reach})


@pytest.fixture(scope="module")
def whole(login: Login, model: Path) -> list[str]:
    """A run of two nodes without a network, through merge and push, with the jobs' numbers."""
    (login.folder / "offline.yaml").write_text("offline: true\n")
    recipe = login.recipe("whole", model)
    words = ("train.strategy=ddp", *HUB_KEYS, "hub.repo=me/whole")
    return login.submit(recipe, *words, "--nodes", "2", "--profile", "offline.yaml", "--through", "push")


@pytest.fixture(scope="module")
def published(online: Login, model: Path) -> list[str]:
    """A run that publishes its model from a job."""
    return online.submit(online.recipe("published", model), *HUB_KEYS, "hub.repo=me/published", "--through", "push")


@pytest.fixture(scope="module")
def swept(login: Login, model: Path) -> dict:
    """A sweep over two values."""
    recipe = login.recipe("swept", model)
    said = login.call("submit", recipe, "--array", "dpo.beta=0.05,0.2", "--through", "dpo", "--json").stdout
    return json.loads(said)


@pytest.fixture(scope="module")
def edited(cluster: Cluster, login: Login, model: Path) -> tuple[Login, list[str]]:
    """A run that was submitted from a checkout which was then made useless, and its recipe changed."""
    checkout = login.folder / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", ".venv", ".git", "runs", "tests", "benchmarks")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    own = Login(cluster, checkout, login.environment)
    recipe = own.recipe("edited", model)
    (checkout / "hold.yaml").write_text("sbatch: --hold\n")
    done = run_python(
        *("-m", "lora_dpo", "submit", recipe, "--through", "dpo", "--profile", "hold.yaml", "--json"),
        cwd=checkout,
        **{**cluster.environment, **login.environment, "PYTHONPATH": str(checkout)},
    )
    assert done.returncode == 0, done.stderr
    (number,) = [job["job"] for job in json.loads(done.stdout)["jobs"]]
    for file in (checkout / "lora_dpo").rglob("*.py"):
        file.write_text("raise SystemExit('this checkout was edited after the job was submitted')\n")
    (checkout / recipe).write_text("run: {name: nonsense}\n")
    cluster.run("scontrol", "release", number)
    return own, [number]


@pytest.fixture(scope="module")
def cancelled(login: Login, model: Path) -> list[str]:
    """A long run, with a merge that waits for it."""
    recipe = login.recipe("long", model)
    return login.submit(recipe, "train.max_steps=100000", "train.save_steps=1000", "--through", "merge")


@pytest.fixture(scope="module", autouse=True)
def _all_at_once(
    cancelled: list[str], whole: list[str], swept: dict, published: list[str], edited: tuple[Login, list[str]]
) -> None:
    """Submits everything before the first test waits for anything."""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--partition", "bathc"], "invalid partition specified: bathc"),
        (["--time", "3d"], "Requested time limit is invalid"),
        (["--nodes", "9"], "allocation failure"),
        (["--gpus-per-node", "9"], "More processors requested than permitted"),
        (["--partition", "short", "--nodes", "2"], "allocation failure"),
    ],
)
def test_what_slurm_refuses_leaves_nothing_behind(login: Login, model: Path, flags: list[str], words: str) -> None:
    recipe = login.recipe("refused", model)
    before = sorted((login.folder / "runs").iterdir())
    said = login.call("submit", recipe, "train.strategy=ddp", "train.global_batch_size=18", *flags, code=2).stderr
    assert "Error: Slurm would not take the job dpo" in said
    assert words in said
    assert sorted((login.folder / "runs").iterdir()) == before


def test_a_wrong_account_is_refused_where_accounts_are_kept(login: Login, model: Path, cluster: Cluster) -> None:
    kept = "slurmdbd" in cluster.run("scontrol", "show", "config")
    recipe = login.recipe("account", model)
    done = login.call("submit", recipe, "--account", "nobody", "--dry-run", code=2 if kept else 0)
    assert ("Invalid account or account/partition combination" in done.stderr) == kept


def test_cancel_saves_first_and_takes_what_waits_out_of_the_queue(
    login: Login, cancelled: list[str], cluster: Cluster
) -> None:
    train, merge = cancelled
    run = login.run("long")
    cluster.until(lambda: run.metrics.exists() and run.metrics.stat().st_size > 0, "the first step")
    seen = login.status("long")
    assert [job["state"] for job in seen["jobs"]] == ["RUNNING", "PENDING"]
    assert seen["progress"]["max_steps"] == 100000
    assert seen["jobs"][1]["waits_for"] == f"waits for {train} to succeed"
    login.call("cancel", "long")
    assert cluster.job(merge)["JobState"] == "CANCELLED"
    assert cluster.job(train)["JobState"] == "FAILED"  # with a code of its own, so that nothing goes on from it
    (end,) = [event for event in login.events("long", "ended") if event["job"] == train]
    assert (end["cause"], end["requeued"], end["reason"]) == ("asked", False, "Stopped by lora-dpo cancel, in order.")
    assert (run.checkpoints / f"step-{end['step']}" / "manifest.json").is_file()
    assert end["step"] > 0
    after = login.status("long")
    assert (after["ended"], after["jobs"][0]["state"]) == (True, "STOPPED")
    assert "There is nothing" not in login.call("logs", "long").stdout
    assert "no job that waits or runs" in login.call("cancel", "long", code=2).stderr


def test_a_run_goes_from_training_to_a_push_on_nodes_without_a_network(
    login: Login, whole: list[str], online: Login, hub: Hub
) -> None:
    assert login.wait(whole) == ["COMPLETED"] * 3
    run = login.run("whole")
    assert run.is_complete
    provenance = json.loads(run.provenance.read_text())
    assert (provenance["world_size"], provenance["strategy"]) == (2, "ddp")
    assert (run.merged / "model.safetensors").is_file()
    (trained,) = [event for event in login.events("whole", "started") if event["stage"] == "dpo"]
    assert len(set(trained["nodes"])) == 2
    seen = login.status("runs/whole")
    assert [job["state"] for job in seen["jobs"]] == ["COMPLETED"] * 3
    assert seen["report"] == "runs/whole/report.md"
    assert not hub.repository("me/whole").exists  # it was only prepared
    online.call("push", "--pending", "--yes")
    assert "model.safetensors" in hub.repository("me/whole").files("main")


def test_a_job_publishes_the_model_with_a_token_that_only_it_has_read(published: list[str], online: Login, hub: Hub):
    assert online.wait(published) == ["COMPLETED"] * 3
    assert "model.safetensors" in hub.repository("me/published").files("main")
    assert TOKEN not in "".join(log.read_text() for log in (online.run("published").slurm / "logs").iterdir())


def test_a_job_runs_what_was_submitted_whatever_becomes_of_the_checkout(edited: tuple[Login, list[str]]) -> None:
    own, jobs = edited
    assert own.wait(jobs) == ["COMPLETED"]
    run = own.run("edited")
    assert load_recipe(run.recipe).train.max_steps == 2
    said = (run.slurm / "logs" / f"dpo-{jobs[0]}.out").read_text()
    assert "edited after" not in said


def test_a_sweep_ends_with_a_table_of_its_runs(login: Login, swept: dict) -> None:
    numbers = [job["job"] for run in swept["runs"] for job in run["jobs"]] + [swept["table_job"]]
    assert login.wait(numbers) == ["COMPLETED"] * 3
    folder = Path(swept["sweep"])
    table = (folder / "sweep.md").read_text()
    assert re.search(r"^\| 0\.05 \| .*\| swept-beta-0\.05 \|$", table, re.MULTILINE)
    assert re.search(r"^\| 0\.2 \| .*\| swept-beta-0\.2 \|$", table, re.MULTILINE)
    found = json.loads((folder / "sweep.json").read_text())
    for entry in found["runs"]:
        report = json.loads((login.run(entry["run"]).report_json).read_text())
        assert entry["complete"]
        assert entry["results"]["MC1"]["after"] == report["multiple_choice"]["mc1"]["after"]
    assert login.run("swept-beta-0.2").load_recipe().dpo.beta == 0.2
    overview = login.call("status", str(folder)).stdout
    assert overview.count("complete") == 2
    assert "swept-beta-0.05" in login.call("sweep", str(folder)).stdout


def test_logs_have_what_every_node_said(login: Login, whole: list[str]) -> None:
    login.wait(whole)
    said = login.call("logs", whole[0]).stdout
    assert f"dpo-{whole[0]}.out <==" in said
    assert said.count("torchrun --nnodes 2") == 2
    followed = login.call("logs", "whole", "--follow", "--stage", "merge").stdout
    assert "Merging runs/whole" in followed
    assert "has no log of a job sft" in login.call("logs", "whole", "--stage", "sft", code=2).stderr


def test_status_without_accounts_and_from_another_folder(login: Login, whole: list[str], tmp_path: Path) -> None:
    login.wait(whole)
    elsewhere = Login(login.cluster, tmp_path, login.environment)
    assert "complete" in elsewhere.call("status", whole[0]).stdout
    watched = login.call("status", "whole", "--watch")
    assert watched.stderr.splitlines()[-1].endswith(" complete")
    everything = json.loads(login.call("status", "--json").stdout)
    assert {Path(each["run"]).name for each in everything} >= {"whole", "long", "swept-beta-0.05"}


def test_no_secret_is_seen_by_other_users(login: Login, model: Path, cluster: Cluster) -> None:
    recipe = login.recipe("secret", model)
    own = Login(cluster, login.folder, {**login.environment, "HF_TOKEN": TOKEN})
    (number,) = own.submit(recipe, "--through", "dpo")
    try:
        assert TOKEN not in cluster.run("scontrol", "show", "job", number)
        files = [file for file in own.run("secret").slurm.rglob("*") if file.is_file()]
        assert not [file for file in files if TOKEN in file.read_text(errors="replace")]
    finally:
        own.call("cancel", "secret", "--now")
    assert cluster.job(number)["JobState"] == "CANCELLED"
    assert os.path.exists(own.run("secret").slurm)
