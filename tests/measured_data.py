from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def shared_data(name: str) -> Path:
    """The folder `name` of the measurement data (GHMDET_DATA, else ../shared/data); skips where it is absent."""
    root = Path(os.environ.get("GHMDET_DATA", REPO.parent / "shared" / "data"))
    path = root / name
    if not path.exists():
        pytest.skip(f"needs the measurement data '{name}': set GHMDET_DATA to the folder that holds it")
    return path
