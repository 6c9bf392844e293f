"""Tables of results, as Markdown, CSV and JSON; and numbers with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PUBLISHED = "published"


@dataclass(frozen=True)
class Spread:
    """A mean, and its standard deviation over `count` repetitions; nan where there was one."""

    mean: float
    sd: float = float("nan")
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Over repeated draws or seeds; the sample standard deviation."""
        return cls(
            float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"), len(values)
        )

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if np.isnan(self.sd) else f"{self.mean:.2f} ± {self.sd:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; no spread is null."""
        return {"mean": self.mean, "sd": None if np.isnan(self.sd) else self.sd, "count": self.count}


@dataclass(frozen=True)
class Table:
    """Rows of cells: text, a number with its spread, or None for what was not measured. `notes` stand below it.

    `name` is that of its CSV file.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table with its title and notes."""
        lines = [f"**{self.title}**", "", _line(self.columns), _line("---" for _ in self.columns)]
        lines += [_line("–" if cell is None else str(cell) for cell in row) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])

    def flat(self) -> list[list[Any]]:
        """Header and rows for a CSV file: of each number the mean, and in a column of its own the sd."""
        numeric = [any(isinstance(row[i], Spread) for row in self.rows) for i in range(len(self.columns))]
        header = [name for name, number in zip(self.columns, numeric, strict=True) for name in _names(name, number)]
        return [
            header,
            *([c for cell, n in zip(row, numeric, strict=True) for c in _cells(cell, n)] for row in self.rows),
        ]


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _names(name: str, number: bool) -> list[str]:
    return [name, f"{name} sd"] if number else [name]


def _cells(cell: Any, number: bool) -> list[Any]:
    if isinstance(cell, Spread):
        return [cell.mean, "" if np.isnan(cell.sd) else cell.sd]
    return [cell if cell is not None else "", *([""] if number else [])]
