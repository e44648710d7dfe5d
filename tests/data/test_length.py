from __future__ import annotations

from collections.abc import Callable

import pytest

from lora_dpo.data.chat import TokenisedPair
from lora_dpo.data.length import fit_length
from lora_dpo.data.pair import Pair
from lora_dpo.errors import UserError

BOS = 1


@pytest.fixture
def sized(pair: Callable[..., Pair]) -> Callable[..., TokenisedPair]:
    """Makes a pair of these lengths: prompt 10, 11, ..., chosen 50, 51, ..., rejected 70, 71, ..."""

    def make(prompt: int, chosen: int, rejected: int, *, bos: bool = False) -> TokenisedPair:
        ids = list(range(10, 10 + prompt))
        source = pair(f"{prompt} {chosen} {rejected}", origin=f"data.csv, line {prompt}")
        return TokenisedPair(
            source,
            [BOS, *ids[1:]] if bos else ids,
            list(range(50, 50 + chosen)),
            list(range(70, 70 + rejected)),
        )

    return make


def test_exactly_as_long_as_allowed_fits(sized) -> None:
    fits, too_long = sized(4, 6, 2), sized(4, 3, 7)  # 10 and 11 tokens
    fitted = fit_length([fits, too_long], 10, "drop", None)
    assert fitted.pairs == [fits]
    assert (fitted.dropped, fitted.truncated) == (1, 0)


def test_order_is_kept(sized) -> None:
    pairs = [sized(4, 2, 2), sized(9, 9, 9), sized(5, 2, 2), sized(9, 2, 9), sized(3, 1, 1)]
    assert fit_length(pairs, 10, "drop", None).pairs == [pairs[0], pairs[2], pairs[4]]


def test_truncation_keeps_the_prompt_s_end_and_both_completions(sized) -> None:
    long = sized(8, 3, 4)  # room for 10 - 4 = 6 tokens of the prompt
    (cut,) = fit_length([long], 10, "truncate_prompt", BOS).pairs
    assert cut.prompt_ids == [12, 13, 14, 15, 16, 17]
    assert (cut.chosen_ids, cut.rejected_ids) == (long.chosen_ids, long.rejected_ids)
    assert cut.length == 10
    assert cut.pair is long.pair


def test_truncation_keeps_a_leading_bos(sized) -> None:
    fitted = fit_length([sized(8, 3, 4, bos=True), sized(2, 1, 1)], 10, "truncate_prompt", BOS)
    assert fitted.pairs[0].prompt_ids == [BOS, 13, 14, 15, 16, 17]
    assert (fitted.dropped, fitted.truncated) == (0, 1)


def test_truncation_without_room_for_two_prompt_tokens_drops(sized) -> None:
    two, one = sized(5, 8, 1, bos=True), sized(5, 1, 9, bos=True)
    fitted = fit_length([two, one], 10, "truncate_prompt", BOS)
    assert [pair.prompt_ids for pair in fitted.pairs] == [[BOS, 14]]
    assert (fitted.dropped, fitted.truncated) == (1, 1)


def test_error_names_the_pair(sized) -> None:
    with pytest.raises(UserError, match=r"The pair has 11 tokens, more than dpo\.max_length 10") as caught:
        fit_length([sized(4, 2, 2), sized(7, 4, 1)], 10, "error", None)
    assert caught.value.where == "data.csv, line 7"


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt", "error"])
def test_shorter_than_every_prompt_stops_with_the_numbers(sized, policy: str) -> None:
    # Sequences of 12, 17 and 26 tokens; the shortest prompt has 10.
    pairs = [sized(10, 2, 1), sized(14, 3, 3), sized(20, 6, 2)]
    with pytest.raises(UserError, match=r"10 is shorter than every prompt") as caught:
        fit_length(pairs, 10, policy, None)
    assert "shortest prompt has 10 tokens, the median pair 17" in str(caught.value)
    assert "at least 12" in str(caught.value)
    assert len(fit_length(pairs, 12, "drop", None).pairs) == 1


def test_no_pairs_is_no_error() -> None:
    assert fit_length([], 10, "error", None).pairs == []
