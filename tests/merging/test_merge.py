"""The whole of a merge, on tiny models: what is written, and that it is the model that was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_dpo.errors import UserError
from lora_dpo.merging.merge import Request, merge
from lora_dpo.model.base import load_model
from lora_dpo.model.hashes import config_hash, weights_hash
from lora_dpo.model.record import read_record
from lora_dpo.recipe.schema import ModelSection
from tests.adapters import known, merged_by_peft, record, save_adapter, spoil
from tests.tiny import tiny_tokenizer

IDS = torch.arange(30, 60)[None]


def merged(output: Path, *sources: Path, **options: Any) -> dict[str, Any]:
    return merge(Request([str(source) for source in sources], output, **options))


def logits(folder: Path) -> torch.Tensor:
    """Loads a model as any user of Transformers would."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_is_what_peft_merges_in_memory(architecture: str, dora: bool, tiny_models, tmp_path: Path) -> None:
    base = tiny_models(architecture)
    adapter = save_adapter(base, tmp_path / "adapter", dora=dora)
    report = merged(tmp_path / "out", adapter)
    expected, found = merged_by_peft(base, adapter), load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == load_file(base / "model.safetensors").keys()  # a tied head stays tied
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert (report["top1_agreement"], report["onto"], report["dtype"]) == (1.0, "full", "float32")
    assert report["kl_mean"] < 1e-12
    assert report["logp_max_abs"] < 1e-5
    assert report["untrained"]["kl_mean"] > 1e-4
    assert report["tensors"]["changed"] == sum("lora_A" in name for name in load_file(adapter_file(adapter)))


def adapter_file(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_precision_is_rounded_to_once(dtype: str, tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    report = merged(tmp_path / "out", adapter, dtype=dtype)
    expected, kind = merged_by_peft(base, adapter), getattr(torch, dtype)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name].to(kind)) for name in found)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == kind
    assert report["dtype"] == dtype
    assert 0 < report["kl_mean"] < 1e-4


def test_a_half_precision_base_is_merged_in_full_precision(tiny_models, tmp_path: Path) -> None:
    """PEFT adds in the base's precision: the change is rounded, and the sum again."""
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_models("llama")).bfloat16().save_pretrained(base)
    tiny_tokenizer("llama").save_pretrained(base)
    adapter = save_adapter(base, tmp_path / "adapter")
    merged(tmp_path / "out", adapter)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    expected = merged_by_peft(base, adapter)
    assert all(torch.equal(found[name], expected[name].bfloat16()) for name in found)


@pytest.fixture
def sharded(tiny_models, tmp_path: Path) -> Path:
    """A tied model in several files, with all that lies beside a model."""
    folder = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(tiny_models("gemma2"))
    model.generation_config.update(max_new_tokens=7, do_sample=True, top_k=3)
    model.save_pretrained(folder, max_shard_size="40KB")
    tiny_tokenizer("gemma2").save_pretrained(folder)
    (folder / "LICENSE").write_text("the base's terms")
    return folder


def test_files_are_divided_as_the_base_s_are(sharded: Path, tmp_path: Path) -> None:
    adapter = save_adapter(sharded, tmp_path / "adapter")
    report = merged(tmp_path / "out", adapter)
    names = sorted(file.name for file in sharded.glob("*.safetensors"))
    assert len(names) > 2
    assert sorted(report["files"]) == sorted(file.name for file in (tmp_path / "out").glob("*.safetensors")) == names
    index, own = (
        json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (sharded, tmp_path / "out")
    )
    assert own["weight_map"] == index["weight_map"]
    assert own["metadata"]["total_size"] == index["metadata"]["total_size"]
    expected = merged_by_peft(sharded, adapter)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generation_config.top_k == 3


def test_tokenizer_template_and_licence_travel_along(sharded: Path, tmp_path: Path) -> None:
    adapter = save_adapter(sharded, tmp_path / "adapter")
    tokenizer = tiny_tokenizer("gemma2")
    tokenizer.chat_template = "{% for m in messages %}<start_of_turn>{{ m['content'] }}<end_of_turn>{% endfor %}"
    tokenizer.save_pretrained(adapter)
    out = tmp_path / "out"
    merged(out, adapter)
    found = AutoTokenizer.from_pretrained(out)
    assert found.chat_template == tokenizer.chat_template
    assert found.get_vocab() == tokenizer.get_vocab()
    assert (out / "LICENSE").read_text() == "the base's terms"
    assert sorted(file.name for file in out.iterdir() if file.name.startswith(".")) == []


def test_what_the_model_says_of_itself(tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    record(base, adapter)
    out = tmp_path / "out"
    report = merged(out, adapter)
    own = read_record(out)
    assert json.loads((out / "merge_report.json").read_text()) == report
    assert own["weights_sha256"] == weights_hash(str(out), None)
    assert own["config_sha256"] == config_hash(out)
    assert own["tokenizer_sha256"] == known(out)["tokenizer_sha256"]
    assert own["model"]["weights_sha256"] == report["base"]["weights_sha256"] == weights_hash(str(base), None)
    assert own["adapters"] == [
        {
            "name": str(adapter),
            "weights_sha256": weights_hash(str(adapter), None),
            "config_sha256": config_hash(adapter),
            "provenance": read_record(adapter),
        }
    ]
    assert {"top1_agreement", "kl_mean", "logp_max_abs", "base", "onto", "peak_bytes", "seconds"} <= report.keys()
    assert report["peak_bytes"] > 10**7
    assert report["probes"]["source"] == "bundled/misconceptions"
    assert report["probes"]["questions"] == 16
    assert [answer["expected"] for answer in report["answers"]] == [answer["merged"] for answer in report["answers"]]


def test_adapters_are_merged_in_order(tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    one = save_adapter(base, tmp_path / "one", seed=1)
    two = save_adapter(base, tmp_path / "two", seed=2, dora=True)
    merged(tmp_path / "out", one, two)
    expected, found = merged_by_peft(base, one, two), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.allclose(found[name], expected[name], atol=1e-7) for name in found)


def test_an_adapter_that_was_trained_on_a_merged_model(tiny_models, tmp_path: Path, capsys) -> None:
    base = tiny_models("llama")
    sft = save_adapter(base, tmp_path / "sft", seed=1)
    record(base, sft)
    merged(tmp_path / "sft model", sft)
    dpo = save_adapter(tmp_path / "sft model", tmp_path / "dpo", seed=2)
    record(tmp_path / "sft model", dpo)
    merged(tmp_path / "at once", sft, dpo)
    assert "nobody has trained" not in " ".join(capsys.readouterr().err.split())
    merged(tmp_path / "in two steps", dpo)
    found = [load_file(tmp_path / name / "model.safetensors") for name in ("at once", "in two steps")]
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])
    with pytest.raises(UserError, match="is another model than the one that .*dpo was trained on"):
        merged(tmp_path / "without sft", dpo, base=str(base))


def test_an_adapter_that_was_trained_on_4_bits_of_a_merged_model(tiny_models, tmp_path: Path) -> None:
    """4 bits of the base, and the first adapter added to them, would not be what it was trained on."""
    pytest.importorskip("bitsandbytes")
    base, bits = tiny_models("gpt2"), {"bits": 4, "dtype": "bfloat16"}
    first = save_adapter(base, tmp_path / "first", seed=1, method="qlora")
    record(base, first, quantization=bits)
    merged(tmp_path / "first model", first)
    second = save_adapter(tmp_path / "first model", tmp_path / "second", seed=2, method="qlora")
    record(tmp_path / "first model", second, quantization=bits)
    with pytest.raises(UserError, match="second was trained on 4-bit weights of the merged model"):
        merged(tmp_path / "at once", first, second)
    assert not (tmp_path / "at once").exists()
    assert merged(tmp_path / "in two steps", second)["onto"] == "quantized"


@pytest.mark.parametrize(("onto", "taken"), [(None, "quantized"), ("full", "full"), ("quantized", "quantized")])
def test_qlora_is_measured_onto_both_bases(onto: str | None, taken: str, tiny_models, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = tiny_models("gpt2")
    adapter = save_adapter(base, tmp_path / "adapter", method="qlora")
    record(base, adapter, quantization={"bits": 4, "dtype": "bfloat16"})
    report = merged(tmp_path / "out", adapter, onto=onto)
    assert report["onto"] == taken
    distances = report["distances"]
    assert distances["quantized"]["kl_mean"] < distances["full"]["kl_mean"] / 10
    assert report["kl_mean"] < 1e-9  # from the base that it was merged onto

    section = ModelSection(name=str(base), dtype="float32" if taken == "full" else "bfloat16")
    if taken == "full":
        trained = PeftModel.from_pretrained(load_model(section), str(adapter)).eval()
        with torch.no_grad():
            assert torch.allclose(logits(tmp_path / "out"), trained(input_ids=IDS).logits, atol=1e-5)


def test_4_bits_for_adapters_that_were_not_trained_on_them(tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    record(base, adapter)
    with pytest.raises(UserError, match="--onto quantized, but these adapters were trained on full-precision"):
        merged(tmp_path / "out", adapter, onto="quantized")
    other = save_adapter(base, tmp_path / "other", seed=2)
    record(base, other, quantization={"bits": 4, "dtype": "bfloat16"})
    with pytest.raises(UserError, match="Some of the adapters were trained on 4-bit weights"):
        merged(tmp_path / "out", adapter, other)
    assert not (tmp_path / "out").exists()


def test_changes_below_the_last_digit_are_not_lost_in_silence(tiny_models, tmp_path: Path) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_models("llama")).bfloat16().save_pretrained(base)
    tiny_tokenizer("llama").save_pretrained(base)
    adapter = save_adapter(base, tmp_path / "adapter", std=1e-4)
    with pytest.raises(UserError, match="has lost what the adapters do, so it was not kept") as caught:
        merged(tmp_path / "out", adapter)
    assert "--dtype fp32" in caught.value.fix
    assert not (tmp_path / "out").exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_value_that_float16_cannot_hold(tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    tensors = load_file(adapter_file(adapter))
    name = next(name for name in sorted(tensors) if "lora_B" in name)
    tensors[name] *= 1e7
    save_file(tensors, adapter_file(adapter))
    with pytest.raises(UserError, match=r"cannot be merged in float16[\s\S]*--dtype bf16 or fp32"):
        merged(tmp_path / "out", adapter, dtype="float16")
    assert not (tmp_path / "out").exists()


def test_a_wrong_merge_is_not_kept(tiny_models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_dpo.model.adapted import Adapted

    right = Adapted.merged
    wrong = "model.layers.1.mlp.down_proj.weight"
    monkeypatch.setattr(
        Adapted,
        "merged",
        lambda self, name, weight, labels=None: weight if name == wrong else right(self, name, weight, labels),
    )
    base = tiny_models("llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(UserError, match="is not the one that was trained, so it was not kept"):
        merged(tmp_path / "out", adapter)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_a_tokenizer_of_other_tokens(tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    tiny_tokenizer("gemma2").save_pretrained(adapter)
    with pytest.raises(UserError, match=r"The tokenizer in .*adapter is not that of the base") as caught:
        merged(tmp_path / "out", adapter)
    assert "The tokenizers' hashes are " in caught.value.why
    assert not (tmp_path / "out").exists()


def test_an_added_token_in_a_row_that_was_free(tiny_models, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(tiny_models("llama"))
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(base)
    tiny_tokenizer("llama").save_pretrained(base)
    adapter = save_adapter(base, tmp_path / "adapter")
    tokenizer = tiny_tokenizer("llama")
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(adapter)
    merged(tmp_path / "out", adapter)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<tool>") == len(tokenizer) - 1


def test_an_added_token_without_a_row(tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    tokenizer = tiny_tokenizer("llama")
    rows = load_model(ModelSection(name=str(base))).config.vocab_size
    tokenizer.add_tokens([f"<tool {number}>" for number in range(rows)])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(UserError, match="has tokens that the base .* has no row for") as caught:
        merged(tmp_path / "out", adapter)
    assert f"the embedding has {rows} rows, 0 to {rows - 1}" in caught.value.why


def test_a_base_without_a_tokenizer(tiny_models, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_models("llama"), tmp_path / "base"))
    adapter = save_adapter(base, tmp_path / "adapter")
    for file in base.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="has no tokenizer that can be read"):
        merged(tmp_path / "out", adapter)
    assert not (tmp_path / "out").exists()


def test_a_base_that_was_cut_off(tiny_models, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_models("llama"), tmp_path / "base"))
    adapter = save_adapter(base, tmp_path / "adapter")
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be read"):
        merged(tmp_path / "out", adapter)
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard(sharded: Path, tmp_path: Path) -> None:
    adapter = save_adapter(sharded, tmp_path / "adapter")
    record(sharded, adapter)
    files = sorted(sharded.glob("*.safetensors"))
    spoil(files[2])
    with pytest.raises(UserError, match=rf"Of {len(files)} files 1 differ: {files[2].name}\."):
        merged(tmp_path / "out", adapter)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter", "base"]


def test_an_adapter_with_nan(tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    tensors = load_file(adapter_file(adapter))
    tensors[min(tensors)][0, 0] = float("nan")
    save_file(tensors, adapter_file(adapter))
    with pytest.raises(UserError, match="has values that are no numbers"):
        merged(tmp_path / "out", adapter)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]
