"""The pages' server, over real HTTP, with a real tiny model behind it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from lora_dpo.data.pair import user
from lora_dpo.errors import UserError
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import find_model
from lora_dpo.inference.sampling import Sampling
from lora_dpo.ui.ballot import CompareBallot
from lora_dpo.ui.desk import Desk
from lora_dpo.ui.drafting import Drafter
from lora_dpo.ui.store import Store, new_ticket
from lora_dpo.ui.web.chatting import chat_site
from lora_dpo.ui.web.collecting import collect_site
from lora_dpo.ui.web.comparing import compare_site, drawn_order
from lora_dpo.ui.web.guard import Password
from lora_dpo.ui.web.serve import Address, serve
from tests.process import PATIENCE, lora_dpo, wait_until
from tests.ui.serving import Client, Server, served

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \x00\x1b[2J\u202e & \"'"
QUESTIONS = [user("Do bats see?"), user(HOSTILE), user("Why is the sky blue?")]


@pytest.fixture
def desk(work: Path, drafter: Drafter):
    with Desk(QUESTIONS, Store(work / "prefs.jsonl"), drafter).open() as desk:
        yield desk


@pytest.fixture
def collecting(desk: Desk):
    with served(collect_site(desk, "proposed")) as client:
        yield client


@pytest.fixture
def tuned(work: Path) -> ChatModel:
    return ChatModel(find_model("runs/small"))


@pytest.fixture
def comparing(work: Path, tuned: ChatModel):
    with served(compare_site(CompareBallot(tuned, Sampling(6), work / "p.jsonl"), QUESTIONS, "", None)) as client:
        yield client


@pytest.fixture
def chatting(tuned: ChatModel):
    with served(chat_site(tuned, Sampling(6), "")) as client:
        yield client


def showing(client: Client, annotator: str = "ann") -> dict:
    while "showing" not in (found := client.send("/api/next", annotator=annotator)):
        assert found["status"] == 200, found
        assert found["progress"]["done"] < found["progress"]["total"], found
    return found["showing"]


def undo(client: Client, annotator: str = "ann", ticket: str | None = None) -> dict:
    return client.send("/api/undo", annotator=annotator, ticket=ticket or new_ticket())


def vote(client: Client, shown: dict, annotator: str = "ann", **values) -> dict:
    values = {"choice": "left", "seconds": 3, **values}
    return client.send("/api/vote", annotator=annotator, ticket=shown["ticket"], pair=shown["pair"], **values)


def test_a_pair_is_shown_blind_and_a_vote_is_stored(collecting: Client, desk: Desk) -> None:
    shown = showing(collecting)
    assert shown["turns"] == [{"role": "user", "content": "Do bats see?"}]
    assert set(shown["left"]) == {"text", "ended"}
    assert set(shown) == {"ticket", "pair", "turns", "left", "right"}
    stored = vote(collecting, shown, comment="Good.", edited="My own.")
    assert (stored["left"], stored["right"], stored["progress"]["done"]) == ("base", "base", 1)
    (line,) = desk.store.votes()
    assert (line["chosen"], line["rejected"], line["comment"]) == ("My own.", shown["right"]["text"], "Good.")
    assert (line["annotator"], line["via"], line["left"]["text"]) == ("ann", "web", shown["left"]["text"])
    assert vote(collecting, shown)["progress"]["done"] == 1  # sent again, since no answer came
    assert len(desk.store.votes()) == 1


def test_two_people_have_sessions_of_their_own(collecting: Client, desk: Desk) -> None:
    ann, bob = showing(collecting, "ann"), showing(collecting, "bob")
    assert ann["pair"] != bob["pair"]
    assert showing(collecting, "ann")["pair"] == ann["pair"]
    vote(collecting, ann, "ann")
    assert undo(collecting, "bob")["undone"] is None
    assert undo(collecting, "ann")["undone"] == "left"
    assert desk.store.votes() == []


def test_an_undo_that_is_sent_again_takes_back_no_second_vote(collecting: Client, desk: Desk) -> None:
    for choice in ("left", "right"):
        vote(collecting, showing(collecting), choice=choice)
    ticket = new_ticket()
    assert [undo(collecting, ticket=ticket)["undone"] for _ in range(2)] == ["right", "right"]
    assert [line["choice"] for line in desk.store.votes()] == ["left"]


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        ("/api/next", {}, "'annotator' is missing"),
        ("/api/next", {"annotator": "x" * 65}, "must be a text of 1 to 64 characters"),
        ("/api/next", {"annotator": ["ann"]}, "'annotator' is missing, or no text"),
        ("/api/vote", {"annotator": "ann", "pair": "../../../etc/passwd"}, "not known here"),
        ("/api/vote", {"annotator": "ann", "pair": "x", "seconds": "now"}, "not known here"),
        ("/api/undo", {"annotator": "a\nb"}, "annotator's name"),
        ("/api/undo", {"annotator": "ann"}, "'ticket' is missing"),
    ],
)
def test_what_makes_no_sense_is_refused(collecting: Client, path: str, values: dict, message: str) -> None:
    found = collecting.send(path, **values)
    assert found["status"] == 400
    assert message in found["error"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"choice": "middle"}, "'middle' is no choice"),
        ({"ticket": "../x"}, "ticket is none of lora-dpo's"),
        ({"seconds": "now"}, "'seconds' is no number"),
        ({"seconds": float("nan")}, "'seconds' is no number"),
        ({"seconds": 10**400}, "'seconds' is no number"),
        ({"comment": "x" * 5000}, "has 5000 characters"),
        ({"edited": "x" * 50_000}, "at most 40,000 are taken"),
        ({"edited": 7}, "'edited' is missing, or no text"),
        ({"choice": "both_bad", "edited": "x"}, "can only be edited as the better one"),
    ],
)
def test_a_vote_that_makes_no_sense_is_refused(collecting: Client, desk: Desk, values: dict, message: str) -> None:
    shown = showing(collecting)
    right = {"annotator": "ann", "ticket": shown["ticket"], "pair": shown["pair"], "choice": "left"}
    found = collecting.send("/api/vote", **{**right, **values})
    assert found["status"] == 400
    assert message in found["error"]
    assert desk.store.votes() == []


def test_a_megabyte_is_too_much(collecting: Client, chatting: Client, desk: Desk) -> None:
    for client, path in ((collecting, "/api/vote"), (chatting, "/api/chat")):
        status, _, body = client.raw("POST", path, json.dumps({"text": "x" * 1_000_000}))
        assert status == 413
        assert b"more than 256 KiB" in body
    assert chatting.send("/api/chat", messages=[{"role": "user", "content": "x" * 50_000}])["status"] == 400


@pytest.mark.parametrize("body", ["", "[1]", "{", "null", '{"a":' * 60_000])
def test_what_is_no_json_object_is_refused(collecting: Client, body: str) -> None:
    assert collecting.raw("POST", "/api/vote", body)[0] in (400, 413)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../guard.py", "/static/..%2fguard.py", "/static/%2e%2e%2f%2e%2e%2fstore.py", "/../../etc/passwd",
        "/static//etc/passwd", "/static/page.html", "/static/", "/static/style.css%00", "/docs", "/prefs.jsonl",
    ],
)  # fmt: skip
def test_a_path_leads_to_no_file(collecting: Client, path: str) -> None:
    status, headers, body = collecting.raw("GET", path)
    assert status == 404
    assert headers["content-type"] == "application/json"
    assert b"error" in body


def test_the_files_of_a_page_are_all_here_and_nothing_inline_may_run(collecting: Client) -> None:
    status, headers, body = collecting.raw("GET", "/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers or headers["server"] != "uvicorn"
    for name in ("style.css", "common.js", "collect.js", "compare.js", "chat.js", "login.js"):
        status, headers, text = collecting.raw("GET", f"/static/{name}")
        assert (status, headers["x-content-type-options"]) == (200, "nosniff")
        assert b"http:" not in text
        assert b"https:" not in text
        assert b"innerHTML" not in text
    assert b"http" not in body


def test_other_sites_cannot_use_a_page(collecting: Client, desk: Desk) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert collecting.raw("GET", "/api/about", Host=host)[0] == 421
    assert collecting.raw("GET", "/api/about", Host="[::1]:80")[0] == 200
    body = json.dumps({"annotator": "ann", "ticket": new_ticket()})
    assert collecting.raw("POST", "/api/undo", body, Origin="http://evil.example")[0] == 403
    assert collecting.raw("POST", "/api/undo", body, Origin="null")[0] == 403
    assert collecting.raw("POST", "/api/undo", body, Content_Type="text/plain")[0] == 415
    own = f"http://localhost:{collecting.port}"
    assert collecting.raw("POST", "/api/undo", body, Origin=own)[0] == 200
    assert collecting.raw("GET", "/api/undo")[0] == 405


def test_without_the_password_nothing_is_told(desk: Desk) -> None:
    with served(collect_site(desk, None), "right one") as client:
        for method, path, body in (
            ("GET", "/api/about", None),
            ("POST", "/api/next", "{}"),
            ("POST", "/api/vote", "{}"),
        ):
            status, _, answer = client.raw(method, path, body)
            assert (status, json.loads(answer)) == (401, {"error": "The password is missing."})
        status, _, page = client.raw("GET", "/")
        assert status == 401
        assert b'data-page="login"' in page
        assert client.raw("GET", "/static/style.css")[0] == 200
        start = time.monotonic()
        for wrong in ("", "wrong", "right one ", "x" * 10_000):
            assert client.send("/api/login", password=wrong)["status"] == 401
        assert time.monotonic() - start > 4
        status, headers, _ = client.raw("POST", "/api/login", json.dumps({"password": "right one"}))
        assert status == 200
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        client.cookie = cookie.partition(";")[0]
        assert "right" not in client.cookie
        assert client.raw("GET", "/api/about")[0] == 200
        assert b'data-page="collect"' in client.raw("GET", "/")[2]
        client.cookie += "0"
        assert client.raw("GET", "/api/about")[0] == 401
    assert Password("right one", 1).token == Password("right one", 1).token != Password("right one", 2).token


def test_without_a_password_the_token_of_the_address_opens_the_page(desk: Desk) -> None:
    with served(collect_site(desk, None)) as known:
        other = Client(known.port)
        for query in ("", "?token=", "?token=0", f"{known.query}0", f"?other={known.query[7:]}"):
            status, headers, page = other.raw("GET", f"/{query}")
            assert status == 401
            assert b'data-page="login"' in page
            assert "set-cookie" not in headers
        for path in ("/api/about", f"/api/about{known.query}"):
            assert other.raw("GET", path)[0] == 401
        status, headers, page = other.raw("GET", f"/{known.query}")
        assert (status, headers["location"], page) == (303, "./", b"")
        assert "HttpOnly" in headers["set-cookie"]
        assert known.query[7:] not in headers["set-cookie"]
        other.cookie = headers["set-cookie"].partition(";")[0]
        assert other.raw("GET", "/api/about")[0] == 200
        assert other.send("/api/login", password=known.query[7:])["status"] == 200  # pasted into the form
    with served(collect_site(desk, None), "secret") as client:
        assert client.raw("GET", "/?token=secret")[0] == 401  # a password does not belong into addresses


def test_wrong_passwords_keep_no_vote_waiting(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_dpo.ui.web.app._THREADS", 2)
    with served(collect_site(desk, None)) as client:
        wrong = [threading.Thread(target=client.send, args=("/api/login",), kwargs={"password": "x"}) for _ in range(6)]
        for each in wrong:
            each.start()
        time.sleep(0.5)
        assert client.raw("GET", "/api/about")[0] == 200
        assert sum(each.is_alive() for each in wrong) > 1
        for each in wrong:
            each.join()


def test_both_answers_are_streamed_blind_and_voted_on(
    comparing: Client, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = itertools.cycle([(0, 1), (1, 0), (1, 0)])
    monkeypatch.setattr("lora_dpo.ui.web.comparing.drawn_order", lambda: next(orders))
    on_the_left = []
    for number in range(6):
        events = comparing.events("/api/compare", prompt=HOSTILE if number == 0 else f"Question {number}?")
        texts = {
            side: "".join(e.get("text", "") for e in events if e.get("side") == side) for side in ("left", "right")
        }
        assert [event["side"] for event in events[:-1]] == sorted(event["side"] for event in events[:-1])
        assert set(events[-1]) == {"ticket", "pair", "alike"}
        assert "base" not in json.dumps(events)
        stored = vote(comparing, events[-1])
        line = Store(work / "p.jsonl").votes()[-1]
        assert (line["left"]["text"], line["right"]["text"]) == (texts["left"], texts["right"])
        assert line["via"] == "compare"
        on_the_left.append(stored["left"] == "runs/small")
        assert sum(stored["tally"].values()) == number + 1
    assert on_the_left == [False, True, True, False, True, True]
    assert {drawn_order() for _ in range(100)} == {(0, 1), (1, 0)}
    assert undo(comparing)["undone"] == "left"
    about = json.loads(comparing.raw("GET", "/api/about")[2])
    assert sum(about["tally"].values()) == 5
    assert about["questions"] == [turns[0]["content"] for turns in QUESTIONS]
    assert comparing.send("/api/compare", prompt="  ")["error"] == "The question is empty."
    assert "too long" in comparing.events("/api/compare", prompt="why? " * 600)[-1]["error"]


def test_only_questions_that_stand_alone_are_proposed(tuned: ChatModel, work: Path) -> None:
    system = {"role": "system", "content": "Be short."}
    later = (*user("Do bats see?"), {"role": "assistant", "content": "Yes."}, *user("All of them?"))
    questions = [(system, *user("Why?")), later, user("Do bats see?"), (system, *later)]
    for given, proposed in (("", ["Do bats see?"]), ("Be short.", ["Why?"])):
        site = compare_site(CompareBallot(tuned, Sampling(6), work / "p.jsonl"), questions, given, None)
        assert site.about["questions"] == proposed


def chat(client: Client, *texts: str, **values) -> list[dict]:
    turns = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]
    return client.events("/api/chat", messages=turns, **values)


def test_chat_answers_as_the_terminal_does_with_the_adapter_on_and_off(chatting: Client, tuned: ChatModel) -> None:
    for base in (False, True):
        with tuned.write(tuned.encoder.prompt_ids(user("Do bats see?")), Sampling(6), base=base) as writing:
            expected = "".join(writing)
        events = chat(chatting, "Do bats see?", base=base)
        assert "".join(event.get("text", "") for event in events) == expected
        assert events[-1]["tokens"] <= 6
    drawn = {"temperature": 1, "seed": 3.0, "max_new_tokens": 4}
    assert chat(chatting, "Do bats see?", sampling=drawn) == chat(chatting, "Do bats see?", sampling=drawn)
    assert chat(chatting, "Do bats see?", "No.", "Why?")[-1]["tokens"] > 0
    long = "Why is the sky blue over the sea? " * 14
    assert chat(chatting, long, "No.", long, "No.", long)[0]["forgotten"] >= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"messages": []}, "a question is the last one"),
        ({"messages": [{"role": "system", "content": "x"}]}, "not one of the user"),
        ({"messages": [{"role": "user", "content": " "}]}, "The question is empty"),
        ({"messages": [{"role": "user"}]}, "'content' is missing"),
        ({"sampling": {"temperature": -1}}, "temperature is -1, which must be a number from 0"),
        ({"sampling": {"temprature": 1}}, "Did you mean 'temperature'?"),
        ({"sampling": {"seed": "x"}}, "seed is no number"),
        ({"sampling": {"top_k": float("inf")}}, "top_k is no number"),
        ({"sampling": {"max_new_tokens": 10**9}}, "at most 8192"),
        ({"sampling": {"top_k": 1.5}}, "top_k is '1.5'"),
        ({"sampling": [1]}, "'sampling' is no object"),
    ],
)
def test_a_conversation_that_makes_no_sense_is_refused(chatting: Client, values: dict, message: str) -> None:
    found = chatting.send("/api/chat", **{"messages": [{"role": "user", "content": "Hi?"}], **values})
    assert found["status"] == 400
    assert message in found["error"]


def test_an_earlier_answer_may_be_longer_than_a_question(chatting: Client) -> None:
    assert chat(chatting, "Why?", "Because. " * 5000, "Do bats see?")[-1]["tokens"] > 0
    turns = [{"role": "user", "content": "Why? " * 10_000}]
    assert "at most 40,000" in chatting.send("/api/chat", messages=turns)["error"]


def test_what_breaks_while_an_answer_is_written_is_no_dead_server(
    chatting: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ChatModel, "_answers", lambda self, *_, **__: 1 / 0)
    assert chat(chatting, "Do bats see?")[-1] == {
        "error": "The answer could not be written; the server's terminal says why."
    }
    assert "ZeroDivisionError" in caplog.text


def test_a_name_is_checked_when_it_is_entered(collecting: Client, comparing: Client) -> None:
    for client in (collecting, comparing):
        assert client.send("/api/name", annotator="ann") == {"status": 200}
        assert "annotator's name is" in client.send("/api/name", annotator="a\nb")["error"]


def test_an_answer_that_nobody_waits_for_any_more_is_not_written(work: Path, tuned: ChatModel) -> None:
    import socket

    with served(chat_site(tuned, Sampling(480, temperature=1.0, seed=0), "")) as client:
        body = json.dumps({"messages": [{"role": "user", "content": "Hi?"}]})
        connection = socket.create_connection(("localhost", client.port))
        head = (
            f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nCookie: {client.cookie}\r\nContent-Length: {len(body)}\r\n"
        )
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        assert b"text" in connection.recv(4096) + connection.recv(4096)
        connection.close()
        wait_until(lambda: all(thread.name != "answer" for thread in threading.enumerate()))


@pytest.mark.slow
def test_200_votes_by_four_people_at_once_are_all_there_once(work: Path, drafter: Drafter) -> None:
    questions = [user(f"Question {number}?") for number in range(200)]
    wrong: list[object] = []
    with (
        Desk(questions, Store(work / "soak.jsonl"), drafter).open() as desk,
        served(collect_site(desk, None)) as client,
    ):

        def person(name: str) -> None:
            own = Client(client.port, client.query).enter()
            try:
                while True:
                    found = own.send("/api/next", annotator=name)
                    if "showing" in found:
                        for _ in range(2):  # as if the first answer had been lost on its way
                            stored = vote(own, found["showing"], name)
                        assert stored["status"] == 200
                    elif found["progress"]["done"] >= found["progress"]["total"]:
                        return
            except BaseException as error:
                wrong.append(error)
                raise

        people = [threading.Thread(target=person, args=(name,)) for name in ("ann", "bob", "eve", "joe")]
        for each in people:
            each.start()
        for each in people:
            each.join()
    assert wrong == []
    lines = [json.loads(line) for line in (work / "soak.jsonl").read_text().splitlines()]
    asked = Counter(line["prompt"] for line in lines)
    left_out = desk.progress("ann").left_out
    assert len(left_out) < 20
    assert len(lines) == len(asked) == 200 - len(left_out)
    assert set(asked.values()) == {1}
    assert len({line["annotator"] for line in lines}) == 4


@pytest.mark.slow
def test_ctrl_c_ends_a_server_in_order_and_its_port_may_be_taken(work: Path) -> None:
    (work / "q.txt").write_text("Do bats see?\n")
    server = Server(work, "collect", "q.txt", "--model", "base", "--max-new-tokens", "6", "--temperature", "1")
    assert server.process is not None
    both = lora_dpo("compare", "runs/small", "--web", "--json", cwd=work)
    assert (both.returncode, "--json has no meaning" in both.stderr) == (2, True)
    taken = lora_dpo("chat", "base", "--web", "--port", str(server.port), cwd=work)
    assert taken.returncode == 2
    assert "The page cannot be served at 127.0.0.1, port" in taken.stderr
    os.kill(server.process.pid, signal.SIGINT)
    rest, _ = server.process.communicate(timeout=PATIENCE)
    assert server.process.returncode == 0
    assert "Train on them: lora-dpo dpo RECIPE data.path=prefs.jsonl adapter.init_from=auto" in rest


@pytest.mark.slow
@pytest.mark.parametrize("words", [("compare", "runs/small", "-o", "p.jsonl"), ("chat", "runs/small")])
def test_compare_and_chat_are_served(work: Path, words: tuple[str, ...]) -> None:
    server = Server(work, *words, "--max-new-tokens", "6")
    try:
        client = server.client
        about = json.loads(client.raw("GET", "/api/about")[2])
        assert about["page"] == words[0]
        if words[0] == "compare":
            assert vote(client, client.events("/api/compare", prompt="Do bats see?")[-1])["status"] == 200
            assert Store(work / "p.jsonl").votes()[0]["prompt"] == "Do bats see?"
        else:
            assert chat(client, "Do bats see?")[-1]["tokens"] <= 6
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (Address(password=" "), "The password is empty"),
        (Address(host="no.such.host.invalid", port=0), "cannot be served at no.such.host.invalid"),
    ],
)
def test_an_address_that_cannot_be(address: Address, message: str) -> None:
    with pytest.raises(UserError, match=message):
        serve(lambda: pytest.fail("nothing is to be loaded"), address)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_dpo.ui import web

    monkeypatch.setattr(web, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--web needs starlette and uvicorn, which are not installed\.\n.*lora-dpo\[ui\]"
    ):
        web.check_web()
    with pytest.raises(UserError, match="--web serves a page, where --prompt has no meaning"):
        web.check_web(json=False, prompt="Hi?")
