"""What `lora-dpo data` shows: counts, and one example as the model reads it, its completion mask in colour."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from lora_dpo.console import out
from lora_dpo.data.build import PreparedData
from lora_dpo.data.chat import TokenisedExample, TokenisedPair

_PROMPT = "dim"
_COLOURS = ("black on green", "black on red")
_NEAR_DUPLICATES_SHOWN = 3


def print_preview(prepared: PreparedData) -> None:
    """Prints counts, what was dropped and why, and the first training pair (or example) token by token."""
    out.print(counts_table(prepared))
    out.print()
    out.print(_example(prepared.splits["train"][0], prepared.encoder.tokenizer))


def counts_table(prepared: PreparedData) -> RenderableType:
    """Returns the splits' counts with one line for everything that was dropped, cut or found suspicious."""
    title = Text.assemble((prepared.unit.capitalize(), "bold"), f" read as {prepared.formats}")
    table = Table()
    table.add_column("split")
    for heading in (prepared.unit, "questions", "median tokens", "longest", "hash"):
        table.add_column(heading, justify="right")
    for split, counts in prepared.summary()["splits"].items():
        lengths = sorted(pair.length for pair in prepared.splits[split])
        table.add_row(
            split,
            f"{counts[prepared.unit]:,}",
            f"{counts['groups']:,}",
            str(lengths[len(lengths) // 2]) if lengths else "",
            str(lengths[-1]) if lengths else "",
            counts["hash"][:12],
        )
    return Group(title, table, *(Text(line) for line in _remarks(prepared)))


def _remarks(prepared: PreparedData) -> list[str]:
    remarks = []
    if prepared.dropped:
        counts = ", ".join(f"{count:,} {reason.replace('_', '-')}" for reason, count in prepared.dropped.items())
        remarks.append(f"Dropped: {counts}.")
    remarks += [f"  {reason}" for reason in prepared.bad_rows]
    if prepared.encoder.answers_apart:
        remarks.append(
            f"Answers tokenised apart from their prompt, since tokens would merge across the border: "
            f"{prepared.encoder.answers_apart:,}."
        )
    if prepared.truncated:
        remarks.append(f"Cut from the left to fit the longest sequence: {prepared.truncated:,} prompts.")
    if prepared.encoder.folds_system:
        remarks.append("The chat template has no system turn; system turns are folded into the first user turn.")
    if prepared.encoder.style == "plain":
        remarks.append("The plain form 'User: ... Assistant: ...' is used, not a chat template.")
    remarks += prepared.remarks()
    near = prepared.near_duplicates
    if near:
        remarks.append(f"Nearly the same prompt on two sides of a split: {len(near):,}, such as")
        for pair in near[:_NEAR_DUPLICATES_SHOWN]:
            remarks.append(f"  {pair.split_a}: {_shortened(pair.prompt_a)}")
            remarks.append(f"  {pair.split_b}: {_shortened(pair.prompt_b)}")
    return remarks


def _shortened(text: str, width: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _example(one: TokenisedPair | TokenisedExample, tokenizer: PreTrainedTokenizerBase) -> RenderableType:
    names = ("chosen", "rejected") if isinstance(one, TokenisedPair) else ("answer",)
    shown = list(zip(names, one.completions, _COLOURS, strict=False))
    legend = Text.assemble(
        f"One training {one.noun}: ",
        ("prompt, not scored", _PROMPT),
        *(part for name, _, colour in shown for part in ("  ", (name, colour))),
    )
    prompt = Text(tokenizer.decode(one.prompt_ids), style=_PROMPT)
    answers = [Text.assemble((f"{name:<10}", "bold"), _tokens(ids, tokenizer, colour)) for name, ids, colour in shown]
    return Group(legend, Text(), prompt, Text(), *answers)


def _tokens(ids: list[int], tokenizer: PreTrainedTokenizerBase, style: str) -> Text:
    """Returns the tokens with a gap between them, so that their borders can be seen."""
    text = Text()
    for token in ids:
        text.append(tokenizer.decode([token]).replace("\n", "↵\n"), style=style)
        text.append("·", style="dim")
    text.append(f" {len(ids)} tokens", style="dim")
    return text
