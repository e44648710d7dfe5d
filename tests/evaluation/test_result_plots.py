from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lora_dpo.evaluation.outcomes import Outcome
from lora_dpo.evaluation.result_plots import _by_category, draw_results


def outcomes(count: int, *metrics: str, categories: int = 1) -> list[Outcome]:
    return [
        Outcome(
            str(place),
            f"{place}?",
            f"category {place % categories}",
            dict.fromkeys(metrics, float(place % 2)),
            dict.fromkeys(metrics, float(place % 3)),
        )
        for place in range(count)
    ]


@pytest.mark.parametrize(
    ("metrics", "categories", "names"),
    [
        (("margin", "accuracy"), 1, ["margins", "evaluation"]),
        (("margin", "accuracy", "tokens"), 1, ["margins", "lengths", "evaluation"]),
        (("mc1", "margin", "accuracy", "tokens"), 3, ["margins", "lengths", "categories", "evaluation"]),
        (("mc1",), 2, ["categories", "evaluation"]),
        ((), 2, []),
    ],
)
def test_pictures_that_there_is_data_for(
    metrics: tuple[str, ...], categories: int, names: list[str], tmp_path: Path
) -> None:
    files = draw_results(outcomes(12, *metrics, categories=categories), tmp_path / "plots")
    assert [file.stem for file in files] == names
    for file in files:
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert len(picture.convert("L").getcolors()) > 10, "an empty picture"


def test_one_question_and_no_change(tmp_path: Path) -> None:
    same = [Outcome("a", "a?", "", {"margin": 1.0, "tokens": 3.0}, {"margin": 1.0, "tokens": 3.0})]
    assert [file.stem for file in draw_results(same, tmp_path)] == ["margins", "lengths", "evaluation"]


def test_values_change_the_picture(tmp_path: Path) -> None:
    first, second = outcomes(12, "margin", "tokens"), outcomes(12, "margin", "tokens")
    second[3].after["margin"] = 40.0
    draw_results(first, tmp_path / "a")
    draw_results(second, tmp_path / "b")
    assert (tmp_path / "a" / "margins.png").read_bytes() != (tmp_path / "b" / "margins.png").read_bytes()
    assert (tmp_path / "a" / "lengths.png").read_bytes() == (tmp_path / "b" / "lengths.png").read_bytes()


def test_small_categories_are_put_together() -> None:
    sizes = {"law": 6, "food": 4, "rare": 3, "": 1}
    found = [Outcome(f"{name}{n}", "?", name) for name, size in sizes.items() for n in range(size)]
    groups = _by_category(found)
    assert {name: len(part) for name, part in groups.items()} == {"law": 6, "food": 4, "2 others": 4, "all": 14}


def test_only_the_largest_categories_are_shown() -> None:
    found = [Outcome(f"{name}{n}", "?", f"c{name:02}") for name in range(12) for n in range(4 + name)]
    groups = _by_category(found)
    assert list(groups) == [*(f"c{name:02}" for name in range(11, 2, -1)), "3 others", "all"]
