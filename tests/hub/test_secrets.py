from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.hub.package import File
from lora_dpo.hub.secrets import check_nothing_private

SECRETS = {
    "hf_" + "x1Y" * 12: "a Hugging Face token (hf_x1Y...)",
    "AKIA" + "ABCD1234" * 2: "an AWS key",
    "-----BEGIN RSA PRIVATE KEY-----": "a private key",
    "sk-ant-" + "a1" * 20: "an OpenAI or Anthropic key",
    "ghp_" + "a1B2" * 9: "a GitHub token",
    "export WANDB_API_KEY=" + "0a" * 20: "a Weights & Biases key",
}


def refusal(path: str, text: str, token: str | None = None) -> str:
    with pytest.raises(UserError) as refused:
        check_nothing_private([File.of(path, text.encode())], token)
    return str(refused.value)


@pytest.mark.parametrize(("secret", "words"), SECRETS.items())
def test_secrets_are_found_with_file_and_line_and_not_repeated(secret: str, words: str) -> None:
    said = refusal("custom/code.py", f"one\ntwo\nkey = '{secret}'\n")
    assert "custom/code.py:3: " in said
    assert words in said
    assert secret not in said or secret.startswith("-----")


def test_the_users_own_token_is_found_whatever_it_looks_like() -> None:
    said = refusal("tokenizer.json", '{"a": 1,\n "b": "plainword"}', token="plainword")
    assert "tokenizer.json:2: your token" in said


@pytest.mark.parametrize("path", ["/home/ada/models/x", "/scratch/ada", "/lustre2/p/x.csv", "/Users/ada/x"])
def test_folders_of_people_are_found_but_in_vocabularies_and_quoted_data(path: str) -> None:
    assert f"config.json:2: a path of this machine ({path[:8]}" in refusal("config.json", f'{{\n"a": "{path}"}}')
    for quoting in ("tokenizer.json", "vocab.json", "training/report.json", "data/train.jsonl"):
        check_nothing_private([File.of(quoting, f'"{path}"'.encode())], None)


def test_the_places_of_this_user_are_found_in_quotes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/p/project/ada")
    monkeypatch.chdir(tmp_path)
    assert "a path of this machine (/p/project/ada/x.csv)" in refusal(
        "training/report.md", "from /p/project/ada/x.csv, and"
    )
    assert str(tmp_path) in refusal("training/report.json", f'{{"a": "{tmp_path}/x"}}')
    check_nothing_private([File.of("a.json", b'"/p/project/adam"')], None)


def test_what_only_looks_alike_passes() -> None:
    text = "hf_hub_download\nhttps://example.org/home/ada\nsk-learn\n/home/\nhalf_" + "a" * 40
    check_nothing_private([File.of("a.md", text.encode())], None)


def test_binary_files_are_not_read_as_text() -> None:
    check_nothing_private([File.of("a.bin", b"\0/home/ada/x")], None)


def test_values_that_are_files_here_are_found_wherever_they_are(tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "with a blank" / "x"
    place.mkdir(parents=True)
    monkeypatch.setattr("lora_dpo.hub.secrets._PLACES", ())
    text = f'{{\n"a": ["{place}"],\n"b": "/nowhere/at/all", "c": "/"}}'
    assert f"custom.json:2: a path of this machine ({place})" in refusal("custom.json", text)
    check_nothing_private([File.of("tokenizer.json", text.encode())], None)
    check_nothing_private([File.of("a.json", b'{"a": "/nowhere/at/all", "b": "/"}')], None)


def test_paths_that_the_run_has_used_are_found_in_every_text() -> None:
    file = File.of("code.py", b"one\nDATA = '/data/p/pairs.csv'\n")
    check_nothing_private([file], None)
    with pytest.raises(UserError, match=r"code\.py:2: a path of this machine \(/data/p/pairs\.csv\)"):
        check_nothing_private([file], None, ["/data/p", "org/base"])
