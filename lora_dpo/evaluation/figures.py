"""How this project's pictures look, and how several panels become files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED, GREY = "#4269d0", "#ff725c", "#8a8a8a"
_PANEL, _OVERVIEW_PANEL = (6.4, 4.0), (5.2, 3.3)  # inches
_STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 110,
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 160,
}
Panels = Mapping[str, Callable[["Axes"], None]]


def draw_panels(panels: Panels, folder: Path, overview: str, layout: Sequence[Sequence[str]]) -> list[Path]:
    """Draws each panel as a picture of its own, and all of them as one.

    Args:
        panels: What draws a panel, by the name of its file.
        folder: Where the pictures go.
        overview: Name of the picture with all panels.
        layout: The panels' names in rows, as matplotlib's `subplot_mosaic` takes them.

    Returns:
        The files, as PNG; the overview is the last.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with pyplot.rc_context(_STYLE):
        for name, draw in panels.items():
            figure, axes = pyplot.subplots(figsize=_PANEL, layout="constrained")
            draw(axes)
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1])
            pyplot.close(figure)
        size = (_OVERVIEW_PANEL[0] * len(layout[0]), _OVERVIEW_PANEL[1] * len(layout))
        figure, places = pyplot.subplot_mosaic([list(row) for row in layout], figsize=size, layout="constrained")
        for name, draw in panels.items():
            draw(places[name])
        files.append(folder / f"{overview}.png")
        figure.savefig(files[-1])
        pyplot.close(figure)
    return files
