from __future__ import annotations

import pytest

from lora_dpo.data.formats.base import BadRowError, Options
from lora_dpo.data.formats.pairwise import PLAIN
from lora_dpo.data.formats.registry import recognise
from lora_dpo.data.formats.transcripts import HH_RLHF, PROMPTED_TRANSCRIPTS, turns_of

START = "\n\nHuman: Who was Odin?\n\nAssistant: A god.\n\nHuman: Of what?\nOf war?"
HH = {"chosen": f"{START}\n\nAssistant: Of wisdom: mostly.", "rejected": f"{START}\n\nAssistant: Beer\n"}
PROMPT = (
    {"role": "user", "content": "Who was Odin?"},
    {"role": "assistant", "content": "A god."},
    {"role": "user", "content": "Of what?\nOf war?"},
)


def only(row: dict, known):
    assert recognise([row], "x") is known
    (made,) = known.convert(row, Options())
    return made.prompt, made.chosen, made.rejected


def test_hh_multi_turn():
    assert only(HH, HH_RLHF) == (PROMPT, "Of wisdom: mostly.", "Beer")


def test_hh_single_turn_and_mark_within_text():
    start = "\n\nHuman: What does Assistant: mean?\nHuman: me"
    row = {"chosen": f"{start}\n\nAssistant: A mark.", "rejected": f"{start}\n\nAssistant:No idea."}
    prompt = ({"role": "user", "content": "What does Assistant: mean?\nHuman: me"},)
    assert only(row, HH_RLHF) == (prompt, "A mark.", "No idea.")


def test_hh_empty_answer_is_left_to_lint():
    row = HH | {"rejected": HH["rejected"].removesuffix(" Beer\n")}
    assert only(row, HH_RLHF) == (PROMPT, "Of wisdom: mostly.", "")
    assert only({"chosen": row["rejected"], "rejected": HH["chosen"]}, HH_RLHF) == (PROMPT, "", "Of wisdom: mostly.")


def test_hh_equal_sides_are_left_to_lint():
    assert only({"chosen": HH["chosen"], "rejected": HH["chosen"]}, HH_RLHF)[1:] == ("Of wisdom: mostly.",) * 2


def test_hh_message_lists():
    row = {side: list(turns_of(text)) for side, text in HH.items()}
    assert only(row, HH_RLHF) == (PROMPT, "Of wisdom: mostly.", "Beer")


@pytest.mark.parametrize(
    ("rejected", "reason"),
    [
        (
            "\n\nHuman: Who was Odin?\n\nAssistant: Dunno.",
            "after turn 1, and what follows in 'chosen' is assistant, user",
        ),
        (START, "after turn 2, and what follows in 'chosen' is user, assistant"),
        ("\n\nHuman: Who was Thor?\n\nAssistant: A god.", "share no turn"),
        ("Once upon a time", "does not begin with 'Human:' or 'Assistant:' but with 'Once upon a time'"),
        ("", "does not begin with"),
        (None, "column 'rejected' is null"),
    ],
)
def test_hh_bad_rows(rejected, reason):
    with pytest.raises(BadRowError) as caught:
        HH_RLHF.convert(HH | {"rejected": rejected}, Options())
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": "\n\nHuman: Who was Odin?\n\nAssistant: A god.\n\nHuman: Of what?\nOf war?\n\nAssistant:",
            "chosen": " Of wisdom.\n",
            "rejected": "Beer",
        },
        {
            "prompt": "Human: Who was Odin?\n\nAssistant: A god.\n\nHuman: Of what?\nOf war?\n\n",
            "chosen": "Assistant: Of wisdom.",
            "rejected": "Assistant:Beer",
        },
    ],
    ids=["rm-static", "yitingxie"],
)
def test_prompted_transcripts(row):
    assert only(row, PROMPTED_TRANSCRIPTS) == (PROMPT, "Of wisdom.", "Beer")


def test_prompts_are_transcripts_only_if_all_of_them_are():
    transcript = {"prompt": "Human: Hi\n\nAssistant:", "chosen": "a", "rejected": "b"}
    plain = {"prompt": "What does 'Human: Hi' mean?", "chosen": "a", "rejected": "b"}
    empty = {"prompt": "", "chosen": "a", "rejected": "b"}
    assert recognise([transcript, empty], "x") is PROMPTED_TRANSCRIPTS
    assert recognise([transcript, plain], "x") is PLAIN
    assert recognise([transcript | {"prompt": "Human: Hi"}], "x") is PLAIN
    assert recognise([empty], "x") is PLAIN
