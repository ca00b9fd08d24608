"""Rows of measured figures: one JSON object a line, below results/."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def today() -> str:
    """The date of a row."""
    return datetime.now(timezone.utc).date().isoformat()


def all_rows(name: str) -> list[dict[str, Any]]:
    """The rows of results/NAME.jsonl, oldest first."""
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def append_row(name: str | Path, row: dict[str, Any]) -> None:
    """Append a row to results/NAME.jsonl, or to a file of its own, and show it."""
    file_of = name if isinstance(name, Path) else RESULTS / f"{name}.jsonl"
    file_of.parent.mkdir(parents=True, exist_ok=True)
    with file_of.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))
