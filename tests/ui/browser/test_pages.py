"""The pages as people use them."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest
from anyio import sleep, sleep_forever

from lora_dpo.data.pair import user
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import find_model
from lora_dpo.inference.sampling import Sampling
from lora_dpo.ui.ballot import CompareBallot
from lora_dpo.ui.desk import Desk
from lora_dpo.ui.drafting import Drafter
from lora_dpo.ui.drafts import Answered, Draft
from lora_dpo.ui.store import Store
from lora_dpo.ui.web.chatting import chat_site
from lora_dpo.ui.web.collecting import collect_site
from lora_dpo.ui.web.comparing import compare_site
from tests.ui.serving import Server, served
from tests.ui.test_web import HOSTILE

PHONE = {"viewport": {"width": 360, "height": 700}, "has_touch": True, "is_mobile": True}


def begin(page, name: str = "ann") -> None:
    """Gives the page a name, as the first visit asks for one."""
    page.fill("#name", name)
    page.keyboard.press("Enter")


def wait_for_question(page, number: int, total: int) -> None:
    page.get_by_text(f"Question {number} of {total}", exact=True).wait_for()
    page.locator("#choose-left:not(:disabled)").wait_for()


def fits(page) -> bool:
    """Returns whether nothing sticks out at the side."""
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_ten_pairs_with_a_refresh_and_a_dead_server_in_between(work: Path, visitor) -> None:
    (work / "q.txt").write_text("".join(f"Question number {n}?\n" for n in range(10)))
    words = ("collect", "q.txt", "--model", "base", "--max-new-tokens", "6", "--temperature", "1")
    server = Server(work, *words)
    store = Store(work / "prefs.jsonl")
    try:
        page = visitor(server.client.url)
        begin(page)
        assert page.url == f"http://localhost:{server.port}/"  # the token has left the address bar
        for number, press in enumerate(("ArrowLeft", "2", "g", "b"), start=1):
            wait_for_question(page, number, 10)
            page.keyboard.press(press)
        wait_for_question(page, 5, 10)
        before = page.inner_text("main")
        page.reload()
        wait_for_question(page, 5, 10)
        texts = sorted(page.inner_text(f"#{side} .text") for side in ("left", "right"))
        assert all(text in before for text in texts)
        server.kill()
        page.click("#choose-right")  # nobody is there to take it
        page.get_by_text("The server cannot be reached. Nothing is lost").wait_for()
        assert len(store.votes()) == 4
        server.start()
        page.locator("#password").wait_for()  # the page has found out by itself
        page.goto(server.client.url)  # as anybody does who sees the new address; the vote is still there
        wait_for_question(page, 6, 10)
        assert page.is_hidden("#offline")
        assert [vote["choice"] for vote in store.votes()] == ["left", "right", "both_good", "both_bad", "right"]
        page.click("text=Skip")
        wait_for_question(page, 7, 10)
        page.keyboard.press("e")
        page.keyboard.press("ArrowLeft")
        page.fill("#edited", "What I would say.")
        page.keyboard.press("Control+Enter")
        wait_for_question(page, 8, 10)
        page.keyboard.press("u")
        wait_for_question(page, 7, 10)
        assert len(store.votes()) == 6
        page.keyboard.press("c")
        page.keyboard.type("1 g b: no keys while writing")
        page.click("#choose-left")
        for number in (8, 9, 10):
            wait_for_question(page, number, 10)
            page.keyboard.press("1")
        page.get_by_text("That was the last question. Thank you.").wait_for()
    finally:
        server.kill()
    votes = store.votes()
    assert len(votes) == len({vote["question"] for vote in votes}) == 10
    assert {vote["annotator"] for vote in votes} == {"ann"}
    assert votes[6]["comment"] == "1 g b: no keys while writing"
    assert all(vote["seconds"] > 0 for vote in votes)
    undone = [line for line in map(json.loads, store.path.read_text().splitlines()) if line["choice"] == "undo"]
    assert len(undone) == 1


def test_hostile_text_is_text(work: Path, drafter: Drafter, visitor) -> None:
    desk = Desk([user(HOSTILE)], Store(work / "p.jsonl"), drafter)
    texts = (f"one {HOSTILE}", f"{HOSTILE} <a href='javascript:alert(3)'>two</a> <style>*{{display:none}}</style>")
    answers = tuple(Answered(text, 1, True, 1, {"name": f"{HOSTILE}{text[:3]}"}) for text in texts)
    desk._drafts.add(Draft(user(HOSTILE), answers, desk.made_by))  # type: ignore[arg-type]
    with desk.open(), served(collect_site(desk, HOSTILE.replace("\x00", "").replace("\x1b", ""))) as client:
        page = visitor(client.url)
        page.fill("#name", "<b>x</b>")
        page.click("text=Start")
        wait_for_question(page, 1, 1)
        assert page.locator("h1").text_content() == HOSTILE
        shown = {page.locator(f"#{side} .text").text_content() for side in ("left", "right")}
        assert shown == set(texts)
        assert page.locator("main script, main img, main a, main style, header b b").count() == 0
        page.click("#choose-left")
        page.get_by_text("That was the last question").wait_for()
        assert page.locator("#status script, #status img").count() == 0
        assert "Left was <script>" in page.inner_text("#status")


def test_the_password_is_asked_for_and_a_vote_survives_it(work: Path, drafter: Drafter, visitor) -> None:
    desk = Desk([user("A?"), user("B?")], Store(work / "p.jsonl"), drafter)
    with desk.open(), served(collect_site(desk, None), "secret") as client:
        page = visitor(client.url)
        page.fill("#password", "wrong")
        page.keyboard.press("Enter")
        page.get_by_text("That is not the password.").wait_for()
        page.fill("#password", "secret")
        page.keyboard.press("Enter")
        begin(page)
        wait_for_question(page, 1, 2)
        page.context.clear_cookies()
        page.keyboard.press("1")
        page.fill("#password", "secret")
        page.keyboard.press("Enter")
        wait_for_question(page, 2, 2)
        assert len(desk.store.votes()) == 1


@pytest.fixture
def tuned(work: Path) -> ChatModel:
    return ChatModel(find_model("runs/small"))


def test_letters_of_the_next_question_are_no_votes(
    work: Path, tuned: ChatModel, visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballot = CompareBallot(tuned, Sampling(6), work / "p.jsonl")
    typed, add = threading.Event(), ballot.add
    monkeypatch.setattr(ballot, "add", lambda draft: typed.wait(300) and add(draft))
    with served(compare_site(ballot, [], "", "ann")) as client:
        page = visitor(client.url)
        begin(page)
        page.fill("#prompt", "Why?")
        page.keyboard.press("Enter")
        page.get_by_text("The models are writing").wait_for()
        page.keyboard.type(" 1")
        typed.set()
        page.get_by_text("Which one is better?").wait_for()
        page.keyboard.type("g")
        assert page.input_value("#prompt") == "Why? 1g"
        page.focus("#answers")
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("u")
        page.get_by_text("Nothing to undo.").wait_for()
        assert ballot.store.votes() == []
        page.keyboard.press("ArrowLeft")
        page.get_by_text("Stored. Left was").wait_for()
        assert page.is_hidden("#proposals")


def test_comparing_with_the_keyboard_alone_on_a_phone(work: Path, tuned: ChatModel, visitor) -> None:
    ballot = CompareBallot(tuned, Sampling(6), work / "p.jsonl")
    with served(compare_site(ballot, [user("Do bats see?"), user(HOSTILE)], "", "ann")) as client:
        page = visitor(client.url, **PHONE)
        page.get_by_role("textbox").wait_for()
        page.keyboard.press("Enter")  # the name that is proposed
        page.locator("#prompt").wait_for()
        page.keyboard.type(HOSTILE.replace("\x00", "").replace("\x1b", ""))
        page.keyboard.press("Enter")
        page.get_by_text("Which one is better?").wait_for()
        assert page.inner_text("#left-by") == "left"
        assert page.locator("main script, main img").count() == 0
        assert fits(page)
        page.keyboard.press("1")
        page.get_by_text("Stored. Left was").wait_for()
        assert {page.inner_text("#left-by"), page.inner_text("#right-by")} == {str(tuned.base_name), "runs/small"}
        (vote,) = ballot.store.votes()
        assert vote["left"]["author"]["name"] == page.inner_text("#left-by")
        assert re.search(r": 1\b", page.inner_text("#tally"))
        page.keyboard.press("u")
        page.get_by_text("Your last vote was taken back.").wait_for()
        assert ballot.store.votes() == []


async def _endless(writing):
    writing.stop()
    while True:
        yield "So they say. "
        await sleep(0.05)


def test_chatting(work: Path, tuned: ChatModel, visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer() -> str:
        return page.locator(".turn.assistant .text").last.text_content()

    with served(chat_site(tuned, Sampling(6), "")) as client:
        page, other = visitor(client.url), visitor(client.url)
        page.fill("#question", "Do bats see?")
        page.keyboard.press("Enter")
        page.get_by_text("6 tokens").wait_for()
        on = answer()
        page.reload()
        page.get_by_text("6 tokens").wait_for()
        assert answer() == on  # the conversation is kept
        other.get_by_text("Ask something.").wait_for()  # and nobody else sees it
        page.click("#new")
        page.click("#tuned")
        page.fill("#question", "Do bats see?")
        page.keyboard.press("Enter")
        page.get_by_text(f"{tuned.base_name}, 6 tokens").wait_for()
        assert answer() != on
        page.click("summary")
        page.fill("#max_new_tokens", "480")
        page.fill("#temperature", "2")
        monkeypatch.setattr("lora_dpo.ui.web.chatting.pieces", _endless)
        page.fill("#question", HOSTILE.replace("\x00", ""))
        page.keyboard.press("Enter")
        page.locator(".turn.assistant .text").nth(1).filter(has_text=re.compile(".{20}", re.S)).wait_for()
        page.keyboard.press("Escape")
        page.get_by_text("stopped", exact=True).wait_for()
        assert page.locator("main script, main img").count() == 0
        kept = json.loads(page.evaluate("sessionStorage['chat:sampling']"))
        assert kept == {"max_new_tokens": 480, "temperature": 2}  # what differs from the server's own
        page.fill("#temperature", "-1")
        page.fill("#question", "And?")
        page.keyboard.press("Enter")
        page.get_by_text("temperature is -1, which must be a number from 0").wait_for()
        assert page.input_value("#question") == "And?"
        assert fits(page)


@pytest.mark.parametrize("part", ["", "Half of it"])
def test_a_conversation_that_is_left_in_its_middle_is_there_again(
    work: Path, tuned: ChatModel, visitor, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    async def stuck(writing):
        writing.stop()
        yield part
        await sleep_forever()

    monkeypatch.setattr("lora_dpo.ui.web.chatting.pieces", stuck)
    with served(chat_site(tuned, Sampling(6), "")) as client:
        page = visitor(client.url)
        page.fill("#question", "Do bats see?")
        page.keyboard.press("Enter")
        page.locator("#stop").wait_for()
        page.locator(".turn.assistant .text").filter(has_text=part).wait_for(state="attached")
        page.reload()
        if part:
            page.get_by_text("cut off", exact=True).wait_for()
            assert page.locator(".turn .text").all_text_contents() == ["Do bats see?", part]
        else:
            page.get_by_text("Ask something.").wait_for()
        assert page.input_value("#question") == ("" if part else "Do bats see?")


def test_a_page_works_on_a_phone_and_by_tab_alone(work: Path, drafter: Drafter, visitor) -> None:
    long = "Donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft" * 2
    desk = Desk([user(f"{long}?"), user("B?")], Store(work / "p.jsonl"), drafter)
    with desk.open(), served(collect_site(desk, "ann")) as client:
        page = visitor(client.url, **PHONE)
        page.fill("#name", "a\u2028b")
        page.keyboard.press("Enter")
        page.get_by_text("The annotator's name is").wait_for()
        begin(page)
        wait_for_question(page, 1, 2)
        assert page.get_attribute("#choose-left", "aria-keyshortcuts") == "ArrowLeft"
        assert page.locator(".text[dir=auto]").count() == 3
        assert fits(page)
        order = []
        for _ in range(12):
            page.keyboard.press("Tab")
            order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        for wanted in ("choose-left", "choose-right", "Both goodg", "Undou"):
            assert wanted in order
        small = page.evaluate("[...document.querySelectorAll('button')].filter(b => b.offsetHeight < 40).length")
        assert small == 0
        page.focus("#choose-right")
        page.keyboard.press("Enter")
        wait_for_question(page, 2, 2)
        assert [vote["choice"] for vote in desk.store.votes()] == ["right"]
        page.keyboard.press("1")
        page.get_by_text("That was the last question").wait_for()
        assert page.evaluate("document.activeElement.tagName") == "H1"


@pytest.mark.skipif(
    "LORA_DPO_PICTURES" not in os.environ, reason="pictures are drawn by hand: LORA_DPO_PICTURES=FOLDER"
)
def test_pictures(visitor) -> None:
    """Draws the pages served at LORA_DPO_PICTURES_AT (collect=URL,compare=URL,chat=URL), light, dark and on a phone."""
    folder = Path(os.environ["LORA_DPO_PICTURES"])
    for entry in os.environ["LORA_DPO_PICTURES_AT"].split(","):
        name, _, url = entry.partition("=")
        looks = {
            "light": {"viewport": {"width": 1100, "height": 700}},
            "dark": {"viewport": {"width": 1100, "height": 700}, "color_scheme": "dark"},
            "phone": PHONE,
        }
        for look, options in looks.items():
            page = visitor(url, **options)
            if name != "chat":
                begin(page, "ann")
            if name == "collect":
                page.locator("#choose-left").wait_for()
            else:
                box = "#prompt" if name == "compare" else "#question"
                page.fill(box, "Do bats see?")
                page.keyboard.press("Enter")
                if name == "compare":
                    page.get_by_text("Which one is better?").wait_for()
                    page.keyboard.press("1")
                    page.get_by_text("Stored.").wait_for()
                else:
                    page.get_by_text(re.compile(r"\d+ tokens")).wait_for()
            page.screenshot(path=folder / f"ui-{name}-{look}.png")
            page.context.close()
