"""Answers of a trained model: chat, generate."""

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
)
from lora_dpo.credentials import load_token
from lora_dpo.ui.web import check_web

verb = verbs("Talk")


@verb(
    epilog=examples(
        "lora-dpo chat runs/quickstart",
        'lora-dpo chat merged --system "Answer in one sentence." --temperature 0',
        'lora-dpo chat me/my-adapter --prompt "Do bats see?"',
        "lora-dpo chat runs/quickstart --json < question.txt",
        "lora-dpo chat runs/quickstart --web --port 8000",
    )
)
def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="Folder of a run, an adapter or a model, or a Hub id of one.")
    ],
    overrides: ModelOverrides = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Answer this and leave; without it, what a pipe brings."),
    ] = None,
    system: System = "",
    base: BaseModel = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes drawn answers repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the one answer as JSON.")] = False,
    web: Web = False,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    password: Password = None,
) -> None:
    """Talk to a run, an adapter or a model, and compare it with its base.

    In the terminal, /help shows the commands. With --prompt, or with text on stdin, the answer alone is printed.
    """
    if web:
        check_web(prompt=prompt, json=as_json)
    load_token()
    from lora_dpo.inference.chat import chat as talk
    from lora_dpo.inference.found import find_model
    from lora_dpo.inference.sampling import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    found = find_model(model, base=base, overrides=overrides or ())
    if web:
        from lora_dpo.ui.web.serve import Address
        from lora_dpo.ui.web.sites import serve_chat

        serve_chat(found, sampling, system, Address(host, port, password))
    else:
        talk(found, sampling, prompt=prompt, system=system, as_json=as_json)


@verb(
    epilog=examples(
        "lora-dpo generate runs/quickstart --input prompts.jsonl --output answers.jsonl",
        "lora-dpo generate merged --input questions.txt --output answers.jsonl --temperature 0.7 --seed 1",
    )
)
def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a run, an adapter or a model, or a Hub id of one.")
    ],
    source: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="FILE",
            help="Prompts: JSONL, JSON, CSV or Parquet with a column prompt, question, "
            "instruction or messages, or a .txt with a prompt a line.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="JSONL file for the answers.")],
    overrides: ModelOverrides = None,
    system: System = "",
    base: BaseModel = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int, typer.Option(help="Of drawn answers.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers written at once.")] = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of answers that is there.")] = False,
) -> None:
    """Answer every prompt of a file, greedily if not told otherwise.

    The same command again goes on with a file that is not complete.
    """
    load_token()
    from lora_dpo.inference.found import find_model
    from lora_dpo.inference.generate import Request
    from lora_dpo.inference.generate import generate as run_generate
    from lora_dpo.inference.sampling import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    found = find_model(model, base=base, overrides=overrides or ())
    run_generate(Request(found, source, Path(output).expanduser(), sampling, system, batch_size, overwrite=overwrite))
