"""People in the loop: collect, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_dpo.cli.app import examples, verbs
from lora_dpo.cli.options import (
    BaseModel,
    Host,
    MaxNewTokens,
    ModelOverrides,
    Password,
    Port,
    RepetitionPenalty,
    System,
    Temperature,
    TopK,
    TopP,
    Web,
    is_model_override,
)
from lora_dpo.credentials import load_token
from lora_dpo.ui.web import check_web

verb = verbs("People")


def _checked_annotator(name: str | None) -> str | None:
    if name is not None:
        from lora_dpo.ui.store import check_annotator

        check_annotator(name)
    return name


Annotator = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        callback=_checked_annotator,
        help="Who votes; your user name if not given. A browser asks.",
    ),
]


@verb(
    epilog=examples(
        "lora-dpo collect --model runs/quickstart -o prefs.jsonl",
        "lora-dpo collect questions.txt --model google/gemma-2-9b-it --temperature 1 -o prefs.jsonl",
        "lora-dpo collect questions.csv --model base --other-adapter runs/mine -o prefs.jsonl",
        "lora-dpo collect --model runs/quickstart --web",
        "lora-dpo collect -o prefs.jsonl --summary",
    )
)
def collect(
    questions: Annotated[
        str | None,
        typer.Argument(
            metavar="QUESTIONS",
            help="A .txt with a question a line, or a .csv, .jsonl ... with a column question or prompt; 50 questions "
            "of science if not given.",
        ),
    ] = None,
    overrides: ModelOverrides = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="JSONL file that each vote is added to.")
    ] = "prefs.jsonl",
    model: Annotated[
        str | None, typer.Option(metavar="MODEL_OR_RUN", help="What writes the answers: run, adapter, model, Hub id.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="An adapter or a run on --model, which is then its base.")
    ] = None,
    other_model: Annotated[
        str | None, typer.Option(metavar="MODEL_OR_RUN", help="What writes the other answer, if not the same.")
    ] = None,
    other_adapter: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="An adapter on --other-model, or else on --model.")
    ] = None,
    annotator: Annotator = None,
    votes: Annotated[
        int, typer.Option(min=1, help="How many people judge each pair; with 2, their agreement is measured.")
    ] = 1,
    system: System = "",
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed, model and question give the same answers.")] = 0,
    summary: Annotated[
        bool, typer.Option("--summary", help="Only show what FILE holds: counts, agreement, doubtful votes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    web: Web = False,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    password: Password = None,
) -> None:
    """Collect preferences: two answers a question, side by side, and a person says which is better.

    Who wrote which stays hidden. Each vote is on the disk before the next question; the same command goes on later, and
    several people may vote into one FILE at once. `lora-dpo dpo RECIPE data.path=FILE` trains on it.
    """
    store = Path(output).expanduser()
    if questions is not None and is_model_override(questions):  # QUESTIONS may be left out
        questions, overrides = None, [questions, *(overrides or [])]
    if summary or as_json:
        from lora_dpo.ui.collect import print_summary

        print_summary(store, as_json=as_json)
        return
    if model is None:
        from lora_dpo.errors import UserError

        raise UserError("It is not said which model writes the answers.", fix="Name it: --model MODEL_OR_RUN.")
    if web:
        check_web()
    load_token()
    from lora_dpo.inference.sampling import Sampling
    from lora_dpo.ui.collect import Request
    from lora_dpo.ui.collect import collect as vote

    request = Request(
        questions=questions,
        model=model,
        output=store,
        sampling=Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed),
        adapter=adapter,
        other_model=other_model,
        other_adapter=other_adapter,
        overrides=overrides or (),
        system=system,
        annotator=annotator,
        votes=votes,
    )
    if web:
        from lora_dpo.ui.web.serve import Address
        from lora_dpo.ui.web.sites import serve_collect

        serve_collect(request, Address(host, port, password))
    else:
        vote(request)


@verb(
    epilog=examples(
        "lora-dpo compare runs/quickstart",
        "lora-dpo compare runs/quickstart --questions my_questions.txt --temperature 0.7",
        "lora-dpo compare runs/quickstart --web",
        "lora-dpo compare merged --base google/gemma-2-9b-it --questions 20 --json > answers.json",
    )
)
def compare(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a run, an adapter or a merged model, or a Hub id of one.")
    ],
    overrides: ModelOverrides = None,
    questions: Annotated[
        str,
        typer.Option(metavar="N|FILE", help="So many of the questions that the run was tested on, or a file of them."),
    ] = "3",
    base: BaseModel = None,
    system: System = "",
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes drawn answers repeatable.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print questions, answers and their lengths as JSON.")
    ] = False,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="With --web: JSONL file that votes are added to.")
    ] = "prefs.jsonl",
    annotator: Annotator = None,
    web: Web = False,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    password: Password = None,
) -> None:
    """Show the answers of base and tuned model side by side; with --web, blind, streamed, and with a vote."""
    if web:
        check_web(json=as_json)
    load_token()
    from lora_dpo.inference.sampling import Sampling
    from lora_dpo.ui.compare import Request
    from lora_dpo.ui.compare import compare as show

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    request = Request(run, sampling, questions, base, overrides or (), system)
    if web:
        from lora_dpo.ui.web.serve import Address
        from lora_dpo.ui.web.sites import serve_compare

        serve_compare(request, Path(output).expanduser(), annotator, Address(host, port, password))
    else:
        show(request, as_json=as_json)
