from __future__ import annotations

import dataclasses

from lora_dpo.data.lint import lint


def test_clean_pairs_stay_as_they_are(pair):
    pairs = [pair("b"), pair("a"), pair("a", "yes", "maybe"), pair("c", group="g")]
    assert lint(pairs) == (pairs, {})


def test_identical_but_for_white_space(pair):
    assert lint([pair("a", "same  text\n", " same text")]) == ([], {"identical": 1})


def test_letter_case_makes_another_answer(pair):
    assert lint([pair("a", "Yes", "yes")])[1] == {}


def test_empty_texts(pair):
    system = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": " "})
    pairs = [pair("a", "", "no"), pair("a", "yes", " \n"), pair("  "), dataclasses.replace(pair("a"), prompt=system)]
    assert lint(pairs) == ([], {"empty": 4})
    assert lint([pair("a", "", "")])[1] == {"empty": 1}


def test_the_first_duplicate_stays(pair):
    first, other, second = pair("a", origin="x, line 1"), pair("b"), pair("a", origin="x, line 9")
    kept, dropped = lint([first, other, second, second])
    assert [p.origin for p in kept] == ["x, line 1", ""]
    assert dropped == {"duplicate": 2}


def test_duplicates_are_exact(pair):
    assert lint([pair("a", "yes"), pair("a", "yes "), pair("a?", "yes")])[1] == {}


def test_contradictions_go_on_both_sides(pair):
    kept, dropped = lint([pair("a", "x", "y"), pair("a", "x", "z"), pair("a", "y", "x"), pair("b", "y", "x")])
    assert [(p.prompt[0]["content"], p.chosen, p.rejected) for p in kept] == [("a", "x", "z"), ("b", "y", "x")]
    assert dropped == {"contradictory": 2}


def test_other_groups_and_prompts_do_not_contradict(pair):
    pairs = [pair("a", "x", "y", group="1"), pair("a", "y", "x", group="2"), pair("b", "y", "x", group="1")]
    assert lint(pairs) == (pairs, {})


def test_a_large_set_takes_linear_time(pair):
    pairs = [pair(f"q{i % 5000}", f"a{i}", f"b{i}") for i in range(50_000)]
    assert len(lint(pairs)[0]) == 50_000
