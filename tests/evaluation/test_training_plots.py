from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lora_dpo.errors import UserError
from lora_dpo.evaluation.training_plots import PANELS, _smoothed, draw_training, read_metrics

SIZES = {"training": (1664, 1056)}  # 10.4 x 6.6 inches at 160 dots an inch


def metrics(count: int) -> list[dict]:
    found = []
    for step in range(1, count + 1):
        values = {"loss": 0.7 - 0.02 * step, "rewards/margins": 0.1 * step, "rewards/accuracies": 0.5}
        found.append({"step": step, "phase": "train", "learning_rate": 1e-5, **values})
        if step % 5 == 0:
            found.append({"step": step, "phase": "eval", **values})
    return found


@pytest.mark.parametrize("count", [1, 4, 30])
def test_five_pictures(count: int, tmp_path: Path) -> None:
    files = draw_training(metrics(count), tmp_path / "plots")
    assert [file.stem for file in files] == [*PANELS, "training"]
    assert [file.stem for file in files] == ["loss", "reward_margin", "accuracy", "learning_rate", "training"]
    for file in files:
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert picture.size == SIZES.get(file.stem, (1024, 640))  # 6.4 x 4 inches
            assert len(picture.convert("L").getcolors()) > 10, "an empty picture"


def test_values_change_the_picture(tmp_path: Path) -> None:
    draw_training(metrics(4), tmp_path / "a")
    draw_training([{**entry, "loss": 2 * entry["step"]} for entry in metrics(4)], tmp_path / "b")
    assert (tmp_path / "a" / "loss.png").read_bytes() != (tmp_path / "b" / "loss.png").read_bytes()
    assert (tmp_path / "a" / "accuracy.png").read_bytes() == (tmp_path / "b" / "accuracy.png").read_bytes()


def test_drawn_again_from_a_file_cut_while_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in metrics(3)) + '{"step": 4, "pha')
    entries = read_metrics(file)
    assert entries == metrics(3)
    first = draw_training(entries, tmp_path / "plots")
    contents = [picture.read_bytes() for picture in first]
    shutil.rmtree(tmp_path / "plots")
    assert [picture.read_bytes() for picture in draw_training(read_metrics(file), tmp_path / "plots")] == contents


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "ph'])
def test_nothing_to_draw(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl has no logged steps"):
        read_metrics(file)


def test_smoothing_by_hand() -> None:
    # keep 0.5: averages 1, (0.5*0.5*1 + 0.5*3)/0.75, ...: with 12 equal values nothing changes.
    assert _smoothed((2.0,) * 12) == pytest.approx((2.0,) * 12)
    assert _smoothed((1.0, 5.0)) == (1.0, 5.0)  # short series stay as they are
    values = (1.0, 3.0) + (3.0,) * 10
    # average_1 = 0.5 -> 0.5 / 0.5 = 1; average_2 = 0.25 + 1.5 = 1.75 -> 1.75 / 0.75 = 7/3
    assert _smoothed(values, keep=0.5)[:2] == pytest.approx((1.0, 7 / 3))
