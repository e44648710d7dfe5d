from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re

import pytest

from lora_dpo.data.near_duplicates import grams, jaccard, near_duplicates
from lora_dpo.data.pair import normalised

LONG = "What happens to you if you eat a great many watermelon seeds at once in the summer"


def in_splits(pair, train=(), validation=(), test=()) -> dict:
    named = {"train": train, "validation": validation, "test": test}
    return {name: [pair(prompt) for prompt in prompts] for name, prompts in named.items()}


def test_jaccard_by_hand():
    # abcde, bcdef | bcdef, cdefg: one of three in common
    assert jaccard(grams("abcdef"), grams("bcdefg")) == pytest.approx(1 / 3)
    assert grams("abc") == {"abc"}
    assert grams("") == {""}


def test_finds_a_changed_word(pair):
    near = LONG.replace("summer", "winter")
    found = near_duplicates(in_splits(pair, train=["Something else", near], test=[LONG]))
    assert len(found) == 1
    assert found[0][:4] == ("train", near, "test", LONG)
    assert found[0].similarity == pytest.approx(jaccard(grams(normalised(near)), grams(normalised(LONG))))
    assert 0.8 <= found[0].similarity < 1


def test_ignores_pairs_within_a_split_and_within_a_group(pair):
    near = LONG + "?!"
    assert pair(near).group == pair(LONG).group
    assert near_duplicates(in_splits(pair, train=[LONG, LONG + " again"], test=["Something else"])) == []
    assert near_duplicates(in_splits(pair, train=[LONG], test=[near])) == []


def test_equal_prompts_with_group_names_of_their_own_are_found(pair):
    splits = {"train": [pair(LONG, group="1")], "validation": [pair(LONG, group="2")], "test": []}
    assert near_duplicates(splits) == [("train", LONG, "validation", LONG, 1.0)]


def test_dissimilar_and_short_prompts(pair):
    assert near_duplicates(in_splits(pair, train=["", "a", "Why is it so?"], test=["b", "Why was it not?", "ab"])) == []
    assert near_duplicates(in_splits(pair)) == []


def test_system_turns_are_not_compared(pair):
    prompt = ({"role": "system", "content": "Be brief. " * 20}, {"role": "user", "content": LONG + " again"})
    splits = {"train": [pair(LONG)], "test": [dataclasses.replace(pair("x"), prompt=prompt)]}
    assert [round(found.similarity, 2) for found in near_duplicates(splits)] == [0.93]


def test_sorted_by_similarity(pair):
    nearer, farther = LONG + " of", LONG + " of last year"
    found = near_duplicates(in_splits(pair, train=[farther, nearer], validation=[], test=[LONG]))
    assert [pair.prompt_a for pair in found] == [nearer, farther]


def test_equals_brute_force(pair):
    rng = random.Random(0)
    words = re.findall(
        r"\w+", "the quick brown fox jumps over lazy dogs while seven wizards box with sphinxes of quartz"
    )
    prompts = []
    for _ in range(60):
        base = [rng.choice(words) for _ in range(rng.randint(3, 40))]
        prompts += [" ".join(base), " ".join([*base, rng.choice(words)]), " ".join(base[1:])]
    rng.shuffle(prompts)
    sides = {"train": prompts[:100], "validation": prompts[100:120], "test": prompts[120:]}
    expected = set()
    for (name_a, side_a), (name_b, side_b) in itertools.combinations(sides.items(), 2):
        for a, b in itertools.product(set(side_a), set(side_b)):
            value = jaccard(grams(normalised(a)), grams(normalised(b)))
            if value >= 0.8 and normalised(a) != normalised(b):
                expected.add((name_a, a, name_b, b, value))
    assert len(expected) > 20
    assert set(near_duplicates(in_splits(pair, **sides))) == expected


def test_a_template_shared_by_thousands(pair):
    prompts = [
        f"Translate sentence number {i} of this long list of sentences into Japanese, please, and say why"
        for i in range(6000)
    ]
    found = near_duplicates(in_splits(pair, train=prompts[1000:], test=prompts[:1000]))
    assert len({duplicate.prompt_b for duplicate in found}) > 900


def test_twenty_thousand_real_words(pair, shared_data):
    lines = (shared_data / "ultrafeedback" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(line)["prompt"] for line in lines).split()
    rng = random.Random(0)
    prompts = [" ".join(rng.sample(words, rng.choice([10, 40, 120]))) for _ in range(20_000)]
    prompts[:50] = [prompt + " too" for prompt in prompts[10_000:10_050]]
    found = near_duplicates(in_splits(pair, train=prompts[1000:], test=prompts[:1000]))
    assert len(found) == 50
