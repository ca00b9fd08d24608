"""Two gloo processes against one, whole trainings; their losses alone are in tests/test_distributed_losses.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from parity import Case, differences, train_all

CASES = {
    "even": Case(pictures=12, val=4, batch_size=4, epochs=3),
    "uneven": Case(pictures=3, val=1, batch_size=4, epochs=4),  # one and two pictures, and one to validate on
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    return train_all(folder, CASES, 2, double=True)


@pytest.mark.parametrize("title", CASES)
def test_two_ranks_train_what_one_process_does(trained: dict[str, Any], title: str) -> None:
    found = differences(trained[title])
    assert found["steps"] == (9 if title == "even" else 4)
    assert found["loss"] < 1e-10 and found["weights"] < 1e-9, found


@pytest.mark.parametrize("title", CASES)
def test_ranks_agree_on_statistics_and_weights_to_the_last_bit(trained: dict[str, Any], title: str) -> None:
    first, second = (trained[title][name]["state"] for name in ("rank0", "rank1"))
    for name in ("loss.ghm_c.spectrum.total", "loss.ghm_r.spectrum.total", "backbone.body.bn1.running_var"):
        assert first[name].abs().sum() > 0
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    spectrum = trained[title]["alone"]["state"]["loss.ghm_c.spectrum.total"]
    assert torch.equal(first["loss.ghm_c.spectrum.total"], spectrum)


def test_a_rank_without_objects_does_its_part(trained: dict[str, Any]) -> None:
    counts = torch.tensor(
        [trained[title][f"rank{rank}"]["positives"] for title in ("uneven",) for rank in (0, 1)]
    )
    assert ((counts == 0).any(0) & (counts > 0).any(0)).any()


@pytest.mark.parametrize("title", CASES)
def test_each_picture_is_validated_once(trained: dict[str, Any], title: str) -> None:
    together, alone = (trained[title][name]["results"] for name in ("rank0", "alone"))
    assert not trained[title]["rank1"]["results"]  # rank 0 judges
    assert {one["image_id"] for one in together} == set(range(1, CASES[title].val + 1))
    scores, expected = (
        sorted((one["image_id"], one["score"]) for one in results) for results in (together, alone)
    )
    assert [image for image, _ in scores] == [image for image, _ in expected]
    assert [score for _, score in scores] == pytest.approx([score for _, score in expected], rel=1e-6)
