"""Tables of results, as Markdown, CSV and JSON; and numbers with their spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PUBLISHED = "published"  # marks the rows of the paper


@dataclass(frozen=True)
class Spread:
    """A mean, and its standard deviation over `count` repetitions; nan without repetitions."""

    mean: float
    sd: float = float("nan")
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Over repeated draws or seeds; the sample standard deviation."""
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return cls(float(np.mean(values)), sd, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if np.isnan(self.sd) else f"{self.mean:.2f} ± {self.sd:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a standard deviation of nan becomes null."""
        return {"mean": self.mean, "sd": None if np.isnan(self.sd) else self.sd, "count": self.count}


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of results.

    Attributes:
        name: of its CSV file, without the ending.
        title: printed above it.
        columns: headings.
        rows: cells; each is text, a Spread, or None where nothing was measured.
        notes: sentences printed below it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """The table with its title and notes."""
        lines = [f"**{self.title}**", "", _markdown_row(self.columns), _markdown_row("---" for _ in self.columns)]
        lines += [_markdown_row("–" if cell is None else str(cell) for cell in row) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])

    def to_csv_rows(self) -> list[list[Any]]:
        """Header and rows of the CSV file; a column with Spreads becomes two, mean and standard deviation."""
        numeric = [any(isinstance(row[i], Spread) for row in self.rows) for i in range(len(self.columns))]
        header = [[column, f"{column} sd"][: 1 + n] for column, n in zip(self.columns, numeric, strict=True)]
        rows = [[_csv_cells(cell, n) for cell, n in zip(row, numeric, strict=True)] for row in self.rows]
        return [[value for cells in row for value in cells] for row in [header, *rows]]


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _csv_cells(cell: Any, numeric: bool) -> list[Any]:
    if isinstance(cell, Spread):
        return [cell.mean, "" if np.isnan(cell.sd) else cell.sd]
    return [cell if cell is not None else "", *([""] if numeric else [])]
