"""Damaged sets are refused or read, in every layout; `make fuzz` tries many more."""

from __future__ import annotations

from pathlib import Path

from fuzz_readers import fuzz


def test_no_damage_crashes_a_reader(tmp_path: Path) -> None:
    crashes: list[str] = []
    outcome = fuzz(tmp_path, 300, say=crashes.append)
    assert not crashes, crashes[0]
    assert outcome["read"] > 50 and outcome["refused"] > 50  # it damages neither all nor nothing
