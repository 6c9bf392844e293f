"""The folder of one evaluation: its settings, its predictions, and the scores that are computed from them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scemae.errors import RunError
from scemae.evaluation.result_table import Spread, Table
from scemae.output import atomic_write, check_own

SETTINGS, PREDICTIONS, SCORES, TABLES = "settings.json", "predictions.jsonl", "scores.json", "tables.md"
OWN = (
    SETTINGS,
    PREDICTIONS,
    SCORES,
    TABLES,
    "*.csv",
    "*.npz",
    "curve.png",
    "tsne.png",
    "pictures",
    "fits",
    "rows",
)


@dataclass(frozen=True)
class EvaluationFolder:
    """Where one evaluation is written. What is there of the same settings is kept, and the rest goes on from it."""

    path: Path
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], overwrite: bool = False) -> EvaluationFolder:
        """Raises RunError where an evaluation with other settings lies there, or anything else; see `check_own`."""
        settings = json.loads(json.dumps(settings))
        if overwrite and (path / SETTINGS).exists():
            check_own(path, OWN)
            shutil.rmtree(path)
        if (path / SETTINGS).exists():
            before = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
            changed = [name for name in settings.keys() | before.keys() if settings.get(name) != before.get(name)]
            if changed:
                shown = "; ".join(f"{name}: {before.get(name)!r} -> {settings.get(name)!r}" for name in sorted(changed))
                raise RunError(f"{path} holds an evaluation with other settings ({shown}). {_ELSE}")
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(f"{path} exists already and holds no evaluation. Choose another --out.")
        path.mkdir(parents=True, exist_ok=True)
        _write(path / SETTINGS, json.dumps(settings, indent=2) + "\n")
        return cls(path, settings)

    def rows(self) -> list[dict[str, Any]]:
        """The predictions so far, one for each key; a line that an interruption cut short is dropped."""
        path = self.path / PREDICTIONS
        if not path.exists():
            return []
        whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
        if rest:
            _write(path, whole + "\n" if whole else "")
        rows = (json.loads(line) for line in whole.splitlines())
        return list({row["key"]: row for row in rows}.values())

    def done(self) -> set[str]:
        """The keys of the predictions so far."""
        return {row["key"] for row in self.rows()}

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add predictions, each with a `key`; arrays become lists."""
        lines = "".join(json.dumps(row, default=np.ndarray.tolist) + "\n" for row in rows)
        with (self.path / PREDICTIONS).open("a", encoding="utf-8") as file:
            file.write(lines)

    def write_scores(self, scores: Mapping[str, Any], *tables: Table) -> None:
        """scores.json, tables.md and a CSV file for each table, in place of older ones."""
        _write(
            self.path / SCORES,
            json.dumps({"settings": self.settings, **scores}, indent=2, default=Spread.to_dict) + "\n",
        )
        if tables:
            _write(self.path / TABLES, "\n\n".join(table.markdown() for table in tables) + "\n")
        for table in tables:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(table.flat())
            _write(self.path / f"{table.name}.csv", text.getvalue())


_ELSE = "Choose another --out, or pass --overwrite to start again."


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
