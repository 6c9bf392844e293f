"""Plots with labelled axes, by matplotlib (extras [train] and [eval])."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from scemae.errors import MissingExtraError

SIZE, DPI = (7.2, 4.0), 100  # inches, and pixels per inch
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
        marker: matplotlib's sign for each point, "o" for example; "" for lines only.

    Raises MissingExtraError where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError('Plots need matplotlib: pip install "scemae[train]" or "scemae[eval]".') from error
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, title=title, xscale=x_scale, yscale=y_scale)
    for name, (x, y) in series.items():
        axes.plot(x, y, marker=marker, label=name)
    axes.grid(alpha=0.3, which="both")
    if len(series) > 1:
        axes.legend()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
