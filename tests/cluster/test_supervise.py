from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lora_dpo.cluster.launch import Launch, plan_launch
from lora_dpo.cluster.output import Output
from lora_dpo.cluster.supervise import NodeEnd, run_launch, run_node
from lora_dpo.console import Failure
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from tests.process import PATIENCE, ROOT

RECIPE = Recipe.model_validate({"model": {"name": "m"}, "run": {"name": "r"}, "train": {"strategy": "single"}})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def from_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.slow
def test_the_exit_code_is_the_training_s_own(from_checkout, tmp_path, monkeypatch, capfd) -> None:
    """`accelerate launch` itself ends with 1 whatever happened."""
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("model: {name: m}\nrun: {name: r}\ntrain: {epoch: 2}\n", encoding="utf-8")
    launch = plan_launch(RECIPE, ["bad.yaml"])
    assert subprocess.run(launch.command, capture_output=True, check=False).returncode == 1
    assert run_launch(launch, RunFolder(tmp_path / "run")) == 2
    errors = capfd.readouterr().err
    assert "Error: bad.yaml:3: unknown key 'train.epoch'. Did you mean 'train.epochs'?" in errors
    assert "Traceback" not in errors
    assert [file.name for file in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("code", [0, 1, 7])
def test_a_code_that_is_in_no_file_is_the_process_s_own(code: int, run: RunFolder) -> None:
    assert run_launch(Launch("single", 1, [sys.executable, "-c", f"raise SystemExit({code})"]), run) == code


SIGNAL_AND_WAIT = """
import os, signal, sys, time
from pathlib import Path
os.kill(os.getppid(), signal.{name})
while not Path(sys.argv[1]).exists():
    time.sleep(0.05)
raise SystemExit(5 if Path(sys.argv[1]).read_text() == "{reason}" else 6)
"""


@pytest.mark.parametrize(("name", "reason"), [("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1")])
def test_the_first_signal_becomes_the_stop_file_and_the_handlers_come_back(
    name: str, reason: str, run: RunFolder
) -> None:
    run.create(RECIPE, overwrite=False)
    before = signal.getsignal(signal.SIGINT)
    child = [sys.executable, "-c", SIGNAL_AND_WAIT.format(name=name, reason=reason), str(run.stop_file)]
    assert run_launch(Launch("single", 1, child), run) == 5
    assert signal.getsignal(signal.SIGINT) is before
    assert "LORA_DPO_EXIT_CODE_FILE" not in os.environ


SIGNAL_ONCE = f"""
import os, signal, time
os.kill(os.getppid(), signal.SIGTERM)
time.sleep({PATIENCE})
"""
SIGNAL_TWICE = f"""
import os, signal, sys, time
from pathlib import Path
os.kill(os.getppid(), signal.SIGTERM)
while not Path(sys.argv[1]).exists():
    time.sleep(0.05)
{SIGNAL_ONCE}
"""


@pytest.mark.parametrize("known", [False, True])
def test_the_second_signal_or_one_before_there_is_a_run_ends_the_training(known: bool, run: RunFolder, capfd) -> None:
    if known:
        run.create(RECIPE, overwrite=False)
        run.stop_file.write_text("of an earlier process", encoding="utf-8")  # is taken away
    child = [sys.executable, "-c", SIGNAL_TWICE if known else SIGNAL_ONCE, str(run.stop_file)]
    code = run_launch(Launch("single", 1, child), run)
    said = capfd.readouterr().err
    if known:
        assert code == 128 + signal.SIGTERM
        assert "a second signal ends it at once.\nEnded at once by SIGTERM. What was saved before is kept" in said
    else:
        assert code == 85
        assert said == "Stopped by SIGTERM, before there was anything to save.\n"
    assert run.stop_file.exists() == known


def test_a_launch_without_a_run_folder_is_asked_by_a_file_of_its_own() -> None:
    child = SIGNAL_AND_WAIT.format(name="SIGINT", reason="Ctrl-C")
    child = child.replace("sys.argv[1]", "os.environ['LORA_DPO_STOP_FILE']")
    assert run_launch(Launch("single", 1, [sys.executable, "-c", child]), None) == 5


DIED = "import os; os.kill(os.getpid(), 9)"
TOLD = "import os; open(os.environ['LORA_DPO_EXIT_CODE_FILE'], 'w').write('{told}'); raise SystemExit(1)"


@pytest.mark.parametrize(
    ("child", "processes", "code", "said"),
    [
        (DIED, 1, 137, "Error: The training ended without saying why. If nothing above does, it was killed, as for"),
        (TOLD.format(told="1\\n"), 1, 1, "Error: The training died of the error above."),
        (DIED, 2, 137, "Error: A process of the training died. The launcher's lines above say which one and how"),
        (TOLD.format(told="2\\nwhat is wrong\\nand why"), 1, 2, ""),
        (TOLD.format(told="2\\nwhat is wrong\\nand why"), 2, 2, "Error: what is wrong\nand why\n"),
    ],
)
def test_it_is_said_last_how_a_launch_failed(
    child: str, processes: int, code: int, said: str, run: RunFolder, capfd
) -> None:
    run.create(RECIPE, overwrite=False)
    assert run_launch(Launch("ddp", processes, [sys.executable, "-c", child]), run) == code
    words = capfd.readouterr().err
    assert words.startswith(said) if said else words == ""
    assert ("Started again, it goes on from its newest whole checkpoint." in words) == (code != 2)


def test_what_has_no_order_to_stop_in_is_ended_by_the_first_signal(capfd) -> None:
    child = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(100)"
    launch = Launch("ddp", 2, [sys.executable, "-c", child], what="evaluation", stops_in_order=False)
    assert run_launch(launch, None) == 128 + signal.SIGTERM
    said = capfd.readouterr().err
    assert said == "Ended by SIGTERM. What was measured is kept: the same command goes on from there.\n"


def test_an_evaluation_that_died_is_not_called_a_training(capfd) -> None:
    launch = Launch("ddp", 2, [sys.executable, "-c", DIED], what="evaluation", stops_in_order=False)
    assert run_launch(launch, None) == 137
    assert capfd.readouterr().err.startswith("Error: A process of the evaluation died.")


def test_nohup_is_respected(run: RunFolder) -> None:
    run.create(RECIPE, overwrite=False)
    child = "import os, signal, time; os.kill(os.getppid(), signal.SIGHUP); time.sleep(1)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_launch(Launch("single", 1, [sys.executable, "-c", child]), run) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not run.stop_file.exists()


def test_a_training_that_outlives_its_launcher_is_waited_for(run: RunFolder, tmp_path: Path) -> None:
    """Slurm signals every process of a job; the launcher then ends first."""
    training = f"import time; time.sleep(2); open({str(tmp_path / 'saved')!r}, 'w')"
    launcher = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {training!r}], start_new_session=True)"
    assert run_launch(Launch("single", 1, [sys.executable, "-c", launcher]), run) == 0
    assert (tmp_path / "saved").exists()


def test_a_run_that_stopped_in_order_says_so_by_its_code(run: RunFolder) -> None:
    child = "import os; open(os.environ['LORA_DPO_EXIT_CODE_FILE'], 'w').write('85')"
    assert run_launch(Launch("single", 1, [sys.executable, "-c", child]), run) == 85


@pytest.mark.slow
def test_a_signal_stops_the_training_in_order_and_the_same_command_goes_on(tiny_models, tmp_path: Path) -> None:
    words = ["dpo", "quickstart", f"model.name={tiny_models('gpt2')}", f"run.folder={tmp_path}"]
    command = [sys.executable, "-m", "lora_dpo", *words, "train.epochs=5", "evaluation.samples=1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    run = RunFolder(tmp_path / "quickstart")
    while not run.metrics.exists():
        assert process.poll() is None
        time.sleep(0.2)
    below = psutil.Process(process.pid).children(recursive=True)
    assert any("lora_dpo.dpo" in child.cmdline() for child in below)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 85
    assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []
    stopped = json.loads(run.stopped.read_text(encoding="utf-8"))
    assert stopped["reason"] == "SIGTERM"
    assert f"Stopped by SIGTERM, after step {stopped['step']} of {stopped['max_steps']}." in said
    assert said.splitlines()[-1].startswith("Go on with: lora-dpo dpo quickstart model.name=")
    assert not run.stop_file.exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"Going on from {run.checkpoints}/step-{stopped['step']}, after step {stopped['step']} of" in again.stderr
    assert not run.stopped.exists()


FAILS = """
import json, os, sys
print("words of a rank")
file = os.environ["LORA_DPO_EXIT_CODE_FILE"]
open(file, "w").write("1")
open(file + ".3", "w").write(json.dumps({"rank": 3, "time": 5.0, "words": "ValueError: no", "stack": "line 7"}))
raise SystemExit(1)
"""


@pytest.mark.parametrize(
    ("child", "end"),
    [
        ("pass", NodeEnd(0)),
        (DIED, NodeEnd(137)),
        (FAILS, NodeEnd(1, failures=(Failure(3, 5.0, "ValueError: no", "line 7"),))),
        (TOLD.format(told="2\\nwhat is wrong"), NodeEnd(2, "what is wrong")),
        (TOLD.format(told="85\\npreemption"), NodeEnd(85, "preemption")),
    ],
)
def test_how_a_node_of_a_job_ends(child: str, end: NodeEnd, run: RunFolder) -> None:
    output = Output(None)
    assert run_node(Launch("ddp", 2, [sys.executable, "-c", child]), run, output) == end
    assert output.last_lines == (["words of a rank"] if child == FAILS else [])


def test_no_signal_ends_a_node_of_a_job_and_the_batch_script_s_words_stay(run: RunFolder) -> None:
    run.path.mkdir()
    child = "import os, signal, time\n" + 3 * "os.kill(os.getppid(), signal.SIGTERM); time.sleep(0.3)\n"
    assert run_node(Launch("ddp", 2, [sys.executable, "-c", child]), run, Output(None)) == NodeEnd(0)
    assert run.stop_file.read_text() == "SIGTERM"
    run.stop_file.write_text("preemption")
    assert run_node(Launch("ddp", 2, [sys.executable, "-c", child]), run, Output(None)) == NodeEnd(0)
    assert run.stop_file.read_text() == "preemption"
