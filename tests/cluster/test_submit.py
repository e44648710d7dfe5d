"""`lora-dpo submit` with a Slurm that answers from files: what is checked, what is refused, and what is written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from lora_dpo.cluster import preflight
from lora_dpo.cluster.record import Record
from lora_dpo.errors import UserError
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.submit import Request, Submission, SweepSubmission, submit
from tests.cluster.conftest import FakeSlurm, record
from tests.hub.server import Hub
from tests.process import lora_dpo

RECIPE = """
model: {name: MODEL}
data: {limit: 24}
train: {global_batch_size: 4, max_steps: 2}
run: {name: small}
slurm: {gpus_per_node: 0}
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_models, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe in the working directory, on a login node of Slurm."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(RECIPE.replace("MODEL", str(tiny_models("llama"))))
    return "small.yaml"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Spares reading the data in a process of its own; returns what was asked for."""
    asked = []

    def check_data(words, *, of_sft, environment):
        asked.append({"words": list(words), "of_sft": of_sft, **environment})
        return {"splits": {"train": {"pairs": 16}}}

    monkeypatch.setattr("lora_dpo.submit.check_data", check_data)
    return asked


def refused(recipe: str, *overrides: str, **options) -> str:
    """Returns why something is refused, and checks that nothing was written or submitted."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as error:
        submit(Request(recipe, overrides, **options))
    assert sorted(Path().rglob("*")) == before
    return str(error.value)


def test_jobs_are_submitted_after_slurm_was_asked(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    done = submit(Request(recipe, ("slurm.nodes=2",), through="merge"))
    assert isinstance(done, Submission)
    assert done.numbers == ["101", "102"]
    asked = [words[0] for words in fake_slurm.calls()]
    assert asked == ["--test-only", "--test-only", "--parsable", "--parsable"]
    train, merge = fake_slurm.submitted()
    run = Path.cwd() / "runs" / "small"
    assert train[-2:] == [f"{run}/slurm/code/slurm/train.sbatch", "runs/small/slurm/recipe.yaml"]
    assert "--nodes=2" in train
    assert "--dependency=afterok:101" in merge
    assert merge[-4:] == ["merge", "runs/small", "-o", "runs/small/merged"]
    assert [(event["event"], event["job"], event["stage"]) for event in Record(RunFolder(run)).events()] == [
        ("submitted", "101", "dpo"),
        ("submitted", "102", "merge"),
    ]
    assert done.says.startswith("to start at")


def test_recipe_and_code_are_frozen(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    submit(Request(recipe, ("dpo.beta=0.3",)))
    slurm = Path("runs/small/slurm")
    assert load_recipe(slurm / "recipe.yaml") == load_recipe(recipe, ["dpo.beta=0.3"])
    code = slurm / "code"
    assert (code / "lora_dpo" / "dpo.py").read_text() == (Path(preflight.__file__).parents[1] / "dpo.py").read_text()
    assert {"lora_dpo", "slurm", "recipes", "accelerate_configs", "ds_configs", "COMMIT"} == set(os.listdir(code))
    assert not list(code.rglob("__pycache__"))
    assert os.access(code / "slurm" / "train.sbatch", os.R_OK)
    # The frozen recipe is a run's own file, and the run may still begin.
    RunFolder(Path("runs/small")).check_free(load_recipe(recipe, ["dpo.beta=0.3"]), overwrite=False)


def test_a_dry_run_writes_nothing_and_shows_everything(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    before = sorted(Path().rglob("*"))
    done = submit(Request(recipe, through="merge", dry_run=True))
    assert sorted(Path().rglob("*")) == before
    assert fake_slurm.submitted() == []
    found = done.as_json()
    assert [job["job"] for job in found["jobs"]] == [None, None]
    assert "--dependency=afterok:JOB1" in found["jobs"][1]["command"]
    assert found["jobs"][0]["environment"]["LORA_DPO_STAGE"] == "dpo"


def test_what_slurm_refuses_is_shown_in_its_words_before_anything_is_read(
    recipe: str, fake_slurm: FakeSlurm, quick: list
) -> None:
    words = refused(recipe, "slurm.partition=nope")
    assert "Slurm would not take the job dpo: invalid partition specified: nope" in words
    assert "Invalid partition name specified" in words
    assert "--partition" in words
    assert quick == []
    assert fake_slurm.submitted() == []


def test_jobs_before_one_that_is_refused_are_taken_back(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    (fake_slurm.folder / "refuse").write_text("102")
    with pytest.raises(UserError, match="Slurm refused the job merge: Batch job submission failed") as error:
        submit(Request(recipe, through="merge"))
    assert "cancelled again: 101" in str(error.value)
    assert fake_slurm.calls("scancel") == [["101"]]


def test_jobs_before_one_that_is_never_answered_are_taken_back_and_so_is_that_one(
    recipe: str, fake_slurm: FakeSlurm, quick: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_dpo.cluster.slurm_client._ANSWERS_WITHIN_SECONDS", 20.0)
    (fake_slurm.folder / "hang").write_text("102")
    logs = Path("runs/small/slurm/logs").absolute()
    for job, folder in (("90", "/elsewhere/runs/small/slurm/logs"), ("102", logs)):
        waits = {"JobId": job, "JobState": "PENDING", "JobName": "small-merge", "StdOut": f"{folder}/merge-{job}.out"}
        fake_slurm.knows(job, "completed", **waits)
    with pytest.raises(UserError, match="sbatch has not answered for 20 seconds") as error:
        submit(Request(recipe, through="merge"))
    assert "cancelled again: 101, 102" in str(error.value)
    assert fake_slurm.calls("scancel") == [["101", "102"]]


def test_a_job_that_slurm_may_still_take_is_named(
    recipe: str, fake_slurm: FakeSlurm, quick: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lora_dpo.cluster.slurm_client._ANSWERS_WITHIN_SECONDS", 20.0)
    (fake_slurm.folder / "hang").write_text("101")
    with pytest.raises(UserError, match="sbatch has not answered for 20 seconds"):
        submit(Request(recipe))
    assert "may still take the job dpo. See whether it has: squeue --me --name=small-dpo" in capsys.readouterr().err
    assert fake_slurm.calls("scancel") == []


def test_ctrl_c_and_a_full_disk_leave_no_job_behind(
    recipe: str, fake_slurm: FakeSlurm, quick: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, error in (("101", KeyboardInterrupt()), ("102", OSError(28, "No space left on device"))):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("lora_dpo.cluster.submission._write_submission", fail)
        with pytest.raises(type(error)):
            submit(Request(recipe, through="dpo"))
        assert f"cancelled again: {number}" in capsys.readouterr().err
        assert fake_slurm.calls("scancel")[-1] == [number]


def test_jobs_that_cannot_be_taken_back_are_named(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    (fake_slurm.folder / "refuse").write_text("102")
    (fake_slurm.folder / "down").touch()
    with pytest.raises(UserError, match="Slurm refused the job merge") as error:
        submit(Request(recipe, through="merge"))
    assert "do it by hand: scancel 101" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("train.strategy=single", "slurm.nodes=2"), "train.strategy single is one process, but 2 nodes without GPUs"),
        (("train.strategy=fsdp2", "slurm.nodes=2"), "train.strategy fsdp2 needs GPUs, and the job asks for none"),
        (("slurm.nodes=8",), "train.global_batch_size 4 is less than one pair for each of 8 processes"),
        (("slurm.nodes=3", "train.trees=off"), "train.global_batch_size 4 cannot be shared equally by 3 processes"),
        (("evaluation.folds=3",), "--array data.split.fold=1,2,3"),
        (("slurm.profile=gers",), "Did you mean 'gres'?"),
        (("slurm.gpus_per_nod=2",), "Did you mean 'slurm.gpus_per_node'?"),
        (("model.name=./nothing",), "There is no model at ./nothing"),
    ],
)
def test_what_cannot_go_together_is_refused(
    recipe: str, fake_slurm: FakeSlurm, quick: list, overrides: tuple[str, ...], words: str
) -> None:
    assert words in refused(recipe, *overrides)
    assert fake_slurm.submitted() == []


def test_an_array_that_would_be_no_sweep_is_refused(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    assert "is not section.key=v1,v2" in refused(recipe, array=("beta",))
    assert "--array asks for 1 run." in refused(recipe, array=("dpo.beta=1",))
    assert "Did you mean 'dpo.beta'?" in refused(recipe, array=("dpo.betta=0.1,0.2",))
    assert "names a value twice" in refused(recipe, array=("dpo.beta=0.1,0.1",))
    assert "nothing to compare runs by" in refused(recipe, array=("run.name=a,b",))


def test_data_that_cannot_be_read_is_found_before_the_job_waits(recipe: str, fake_slurm: FakeSlurm) -> None:
    assert "there is no file or folder 'pears.jsonl'" in refused(recipe, "data.path=pears.jsonl")


def test_data_is_read_as_the_job_will(recipe: str, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    submit(Request(recipe, dry_run=True))
    assert "Data of dpo: train 17, validation 2, test 5." in capsys.readouterr().err


def test_a_run_whose_job_waits_is_not_submitted_again(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    submit(Request(recipe, through="dpo"))
    fake_slurm.knows("101", "running")
    before = len(fake_slurm.calls())
    with pytest.raises(UserError, match="has a job already: 101 is RUNNING"):
        submit(Request(recipe))
    assert len(fake_slurm.calls()) == before
    fake_slurm.knows("101", "completed")
    assert submit(Request(recipe, through="dpo")).numbers == ["102"]


def test_a_finished_run_is_not_done_again(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    loaded = load_recipe(recipe)
    run = RunFolder.of(loaded)
    run.create(loaded, overwrite=False).release()
    run.report_json.write_text("{}")
    assert "All of small is complete: dpo." in refused(recipe, through="dpo")
    done = submit(Request(recipe, through="merge"))
    assert isinstance(done, Submission)
    assert ([job.step for job in done.plan.jobs], done.complete) == (["merge"], ("dpo",))
    assert not [word for word in fake_slurm.submitted()[0] if word.startswith("--dependency")]


def test_another_run_of_that_name_stays(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    other = load_recipe(recipe, ["dpo.beta=0.5"])
    RunFolder.of(other).create(other, overwrite=False).release()
    words = refused(recipe)
    assert "holds an unfinished run of another recipe" in words
    assert "--overwrite" not in words


def test_eval_ends_where_dpo_does(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    done = submit(Request(recipe, through="eval", dry_run=True))
    assert isinstance(done, Submission)
    assert [job.step for job in done.plan.jobs] == ["dpo"]


def test_chain_means_no_requeue(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    done = submit(Request(recipe, through="merge", chain=3))
    assert done.numbers == ["101", "102", "103", "104"]
    jobs = fake_slurm.submitted()
    assert all("--no-requeue" in job for job in jobs)
    assert "--dependency=afterany:102" in jobs[2]
    assert "--dependency=afterok:103" in jobs[3]


def test_secrets_are_on_no_command_line_and_in_no_file(
    recipe: str, fake_slurm: FakeSlurm, quick: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_" + "Xy1" * 12
    monkeypatch.setenv("HF_TOKEN", secret)
    done = submit(Request(recipe, through="merge"))
    assert any("HF_TOKEN" in remark for remark in done.remarks)
    assert secret not in json.dumps([fake_slurm.calls(), done.as_json()])
    assert not [
        file for file in Path("runs").rglob("*") if file.is_file() and secret in file.read_text(errors="replace")
    ]
    assert fake_slurm.environment()["HF_TOKEN"] == secret  # nobody else has it


def test_a_token_of_a_dotenv_file_is_left_to_the_job(
    recipe: str, fake_slurm: FakeSlurm, quick: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("ACCESS_TOKEN=hf_of_the_file\nWANDB_API_KEY=only_the_shell_reads_it\n")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_file")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    done = submit(Request(recipe))
    assert not {"HF_TOKEN", "ACCESS_TOKEN"} & set(fake_slurm.environment())
    assert fake_slurm.environment()["WANDB_API_KEY"] == "key"  # jobs read no more than the token out of the file
    assert [remark.partition(":")[0] for remark in done.remarks if "Slurm keeps" in remark] == ["WANDB_API_KEY"]


def test_the_job_gets_this_python_and_no_variables_of_another_job(
    recipe: str, fake_slurm: FakeSlurm, quick: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("LORA_DPO_CHAIN", "mine")
    submit(Request(recipe, through="dpo"))
    environment = fake_slurm.environment()
    assert "LORA_DPO_CHAIN" not in environment
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert "SLURM_JOB_ID" not in environment
    assert environment["LORA_DPO_CODE"].endswith("runs/small/slurm/code")


def test_modules_and_a_setup_file_are_sourced_by_one_script(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    Path("my setup.sh").write_text("true\n")
    setup = Path.cwd() / "my setup.sh"
    Path("site.yaml").write_text(f"setup: {setup}\nmodules: [gcc, cuda/12]\n")
    submit(Request(recipe, ("slurm.profile=site.yaml",)))
    script = Path("runs/small/slurm/setup.sh")
    assert script.read_text().splitlines()[-2:] == [f"source '{setup}'", "module load gcc cuda/12"]
    assert fake_slurm.environment()["LORA_DPO_SETUP"] == str(script.absolute())
    Path("site.yaml").write_text("setup: nothing.sh\n")
    assert "The profile's setup is nothing.sh, which is no file" in refused(
        recipe, "slurm.profile=site.yaml", "run.name=other"
    )


def test_offline_nodes_get_what_was_read_without_a_network_before(
    recipe: str, fake_slurm: FakeSlurm, quick: list
) -> None:
    Path("site.yaml").write_text("offline: true\n")
    submit(Request(recipe, ("slurm.profile=site.yaml",)))
    assert [call.get("HF_HUB_OFFLINE") for call in quick] == [None, "1"]
    assert fake_slurm.environment()["LORA_DPO_OFFLINE"] == "1"


def test_a_run_that_will_be_published_is_fetched_to_where_its_jobs_look(
    recipe: str, fake_slurm: FakeSlurm, tiny_models
) -> None:
    """In a process of its own: the Hub's client reads where its cache is when it is imported."""
    server = Hub(Path("hub"), {}).start()
    try:
        repository = server.repository("me/tiny")
        repository.create(private=False)
        files = {file.name: repository.put_blob(file.read_bytes()) for file in tiny_models("llama").iterdir()}
        repository.commit("main", "a model", files, parent=None)
        scratch = Path("scratch").absolute()
        Path("site.yaml").write_text(f"offline: true\nscratch: {scratch}\n")
        done = lora_dpo(
            *("submit", recipe, "model.name=me/tiny", "hub.repo=me/mine", "hub.license=apache-2.0"),
            *("--profile", "site.yaml"),
            cwd=Path.cwd(),
            **{"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
            HF_HOME=str(Path("home").absolute()),
        )
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr
    (weights,) = scratch.glob("huggingface/hub/models--me--tiny/snapshots/*/model.safetensors")
    assert weights.read_bytes() == (tiny_models("llama") / "model.safetensors").read_bytes()
    assert not list(Path("home").rglob("models--*"))
    assert fake_slurm.environment()["HF_HUB_CACHE"] == str(scratch / "huggingface" / "hub")


def test_a_sweep_is_a_run_a_value_and_a_table_after_all(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    done = submit(Request(recipe, through="merge", array=("dpo.beta=0.05,0.2", "dpo.loss=sigmoid,[sigmoid,sft]")))
    assert isinstance(done, SweepSubmission)
    names = [run.plan.recipe.run.name for run in done.runs]
    assert names == [
        "small-beta-0.05-loss-sigmoid",
        "small-beta-0.05-loss-sigmoid-sft",
        "small-beta-0.2-loss-sigmoid",
        "small-beta-0.2-loss-sigmoid-sft",
    ]
    assert [run.numbers for run in done.runs] == [["101", "102"], ["103", "104"], ["105", "106"], ["107", "108"]]
    assert done.number == "109"
    *_, table = fake_slurm.submitted()
    assert "--dependency=afterany:102:104:106:108" in table
    assert "--dependency=afterok:103" in fake_slurm.submitted()[3]
    assert len(quick) == 1  # all of them read the same data
    frozen = [load_recipe(Path("runs") / name / "slurm" / "recipe.yaml") for name in names]
    assert [(each.dpo.beta, each.dpo.loss) for each in frozen][1] == (0.05, ["sigmoid", "sft"])
    sweep = json.loads(Path("runs/small-sweep-beta-loss/sweep.json").read_text())
    assert sweep["runs"][1] == {"run": names[1], "values": {"dpo.beta": "0.05", "dpo.loss": "[sigmoid,sft]"}}


def test_runs_of_a_sweep_do_not_replace_each_other_on_the_hub(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    array = ("dpo.beta=0.05,0.2",)
    words = refused(recipe, "hub.repo=me/mine", array=array)
    assert "All 2 runs of the sweep would be published, several of them in one repository (me/mine)" in words
    assert "--through merge" in words
    assert "several of them in one repository" in refused(
        recipe, "hub.repo=me/mine", array=(*array, "hub.repo=me/a,me/b")
    )
    assert fake_slurm.calls() == []
    done = submit(Request(recipe, ("hub.repo=me/mine",), through="merge", array=array, dry_run=True))
    assert isinstance(done, SweepSubmission)
    assert [job.step for run in done.runs for job in run.plan.jobs] == ["dpo", "merge"] * 2


def test_of_a_sweep_all_or_nothing_is_submitted(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    (fake_slurm.folder / "refuse").write_text("102")
    with pytest.raises(UserError, match="cancelled again: 101"):
        submit(Request(recipe, through="dpo", array=("dpo.beta=0.05,0.2",)))
    assert fake_slurm.calls("scancel") == [["101"]]


def test_a_sweep_that_is_submitted_again_goes_on_with_what_is_left(
    recipe: str, fake_slurm: FakeSlurm, quick: list
) -> None:
    request = Request(recipe, through="dpo", array=("dpo.beta=0.05,0.2",))
    for beta in ("0.05", "0.2"):
        done = load_recipe(recipe, [f"dpo.beta={beta}", f"run.name=small-beta-{beta}"])
        RunFolder.of(done).create(done, overwrite=False).release()
        if beta == "0.05":
            RunFolder.of(done).report_json.write_text("{}")
    sweep = submit(request)
    assert isinstance(sweep, SweepSubmission)
    assert [run.plan.recipe.run.name for run in sweep.runs] == ["small-beta-0.2"]
    assert len(json.loads(Path("runs/small-sweep-beta/sweep.json").read_text())["runs"]) == 2
    Path("runs/small-beta-0.2/report.json").write_text("{}")
    with pytest.raises(UserError, match="All runs of the sweep are complete"):
        submit(request)


def test_an_old_stop_file_does_not_end_the_new_job(recipe: str, fake_slurm: FakeSlurm, quick: list) -> None:
    record(Path("runs/small"), {"event": "ended", "job": "50", "cause": "asked", "requeued": False})
    Path("runs/small/stop").write_text("lora-dpo cancel")
    submit(Request(recipe))
    assert not Path("runs/small/stop").exists()


def test_without_slurm_nothing_happens(recipe: str, no_slurm: None) -> None:
    assert "no login node of a Slurm cluster" in refused(recipe)
