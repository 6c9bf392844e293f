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
from scemae.output import atomic_write, check_own, is_taken

SETTINGS, PREDICTIONS, SCORES, TABLES = "settings.json", "predictions.jsonl", "scores.json", "tables.md"
OWN_FILES = (
    SETTINGS, PREDICTIONS, SCORES, TABLES, "*.csv", "*.npz", "curve.png", "tsne.png", "pictures", "fits", "rows",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluationFolder:
    """Where one evaluation is written. Predictions that are already there, with the same settings, are kept."""

    path: Path
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], overwrite: bool = False) -> EvaluationFolder:
        """Create the folder, or continue with it; raises RunError if it holds other settings or no evaluation.

        `overwrite` starts again; raises OutputError if the folder holds files that are not an evaluation's.
        """
        settings = json.loads(json.dumps(settings))
        if overwrite and is_taken(path / SETTINGS):
            check_own(path, OWN_FILES)
            shutil.rmtree(path)
        if is_taken(path / SETTINGS):
            (before,) = _read_objects(path / SETTINGS, whole=True)
            changed = [name for name in settings.keys() | before.keys() if settings.get(name) != before.get(name)]
            if changed:
                changes = "; ".join(
                    f"{name}: {before.get(name)!r} -> {settings.get(name)!r}" for name in sorted(changed)
                )
                raise RunError(
                    f"{path} holds an evaluation with other settings ({changes}). Choose another --out, or pass "
                    "--overwrite to start again."
                )
        elif is_taken(path) and (not path.is_dir() or any(path.iterdir())):
            raise RunError(f"{path} exists already and does not hold an evaluation. Choose another --out.")
        path.mkdir(parents=True, exist_ok=True)
        _write_text(path / SETTINGS, json.dumps(settings, indent=2) + "\n")
        return cls(path, settings)

    def read_predictions(self) -> list[dict[str, Any]]:
        """The predictions so far, one for each key; a line that an interruption cut short is removed."""
        path = self.path / PREDICTIONS
        if not path.exists():
            return []
        return list({prediction["key"]: prediction for prediction in _read_objects(path)}.values())

    def read_finished_keys(self) -> set[str]:
        """The keys of the predictions so far."""
        return {prediction["key"] for prediction in self.read_predictions()}

    def append(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        """Add predictions, each with a `key`; arrays become lists."""
        lines = "".join(json.dumps(prediction, default=np.ndarray.tolist) + "\n" for prediction in predictions)
        with (self.path / PREDICTIONS).open("a", encoding="utf-8") as file:
            file.write(lines)

    def write_scores(self, scores: Mapping[str, Any], *tables: Table) -> None:
        """Write scores.json, tables.md and a CSV file for each table, replacing older ones."""
        text = json.dumps({"settings": self.settings, **scores}, indent=2, default=Spread.to_dict)
        _write_text(self.path / SCORES, text + "\n")
        if tables:
            _write_text(self.path / TABLES, "\n\n".join(table.to_markdown() for table in tables) + "\n")
        for table in tables:
            file = io.StringIO()
            csv.writer(file, lineterminator="\n").writerows(table.to_csv_rows())
            _write_text(self.path / f"{table.name}.csv", file.getvalue())


def _read_objects(path: Path, whole: bool = False) -> list[dict[str, Any]]:
    """The JSON objects of a file, one in all (`whole`) or one a line; a line that was cut short is removed.

    Raises RunError for a file that is not as it was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
        complete, _, rest = text.rpartition("\n")
        if rest and not whole:
            _write_text(path, complete + "\n" if complete else "")
        found = [json.loads(text)] if whole else [json.loads(line) for line in complete.splitlines()]
        if not all(isinstance(row, dict) and (whole or "key" in row) for row in found):
            raise ValueError("it does not hold what an evaluation writes")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}. Pass --overwrite to start the evaluation again.") from error
    return found


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
