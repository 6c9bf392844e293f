"""Plots with labelled axes, by matplotlib (extras [train] and [eval])."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray
from PIL import Image

from scemae.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE, DPI = (7.2, 4.0), 100  # inches, and pixels per inch
LEGEND_ROWS = 18  # that fit into the height
Scale = Literal["linear", "log"]


def line_plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    marker: str = "",
) -> Image.Image:
    """Lines over common axes as an RGB picture of 720 x 400 px.

    Args:
        series: the x and y values of each line by its name; a legend shows the names where there are several lines.
        x_label, y_label: what the axes show, with its unit.
        title: above the plot; "" for none.
        x_scale, y_scale: a logarithmic axis leaves out values that are not positive.
        marker: matplotlib's marker for each point, such as "o"; "" for lines only.

    Raises MissingExtraError where matplotlib is not installed.
    """
    figure = _new_figure()
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, title=title, xscale=x_scale, yscale=y_scale)
    for name, (x, y) in series.items():
        axes.plot(x, y, marker=marker, label=name)
    axes.grid(alpha=0.3, which="both")
    if len(series) > 1:
        axes.legend()
    return _render(figure)


def scatter_plot(clusters: Mapping[str, NDArray[Any]], x_label: str, y_label: str) -> Image.Image:
    """Points (N, 2) of each cluster in a colour of its own, with a legend; as `line_plot` otherwise."""
    figure = _new_figure()
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    for number, (name, xy) in enumerate(clusters.items()):
        hue = number / len(clusters)
        axes.scatter(xy[:, 0], xy[:, 1], s=4, color=colorsys.hsv_to_rgb(hue, 0.9, 0.85), label=name)
    columns = -(-len(clusters) // LEGEND_ROWS)
    figure.legend(loc="outside right center", ncols=columns, markerscale=3, fontsize="small")
    return _render(figure)


def require_matplotlib() -> None:
    """Raise MissingExtraError where matplotlib is not installed. Call it before long work that ends in a plot."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError('Plots need matplotlib: pip install "scemae[train]" or "scemae[eval]".')


def _new_figure() -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=SIZE, dpi=DPI, layout="constrained")


def _render(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")
