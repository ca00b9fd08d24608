from __future__ import annotations

import pytest
import torch
from detector_cases import TINY
from torch import Tensor

from ghmdet.models import ModelConfig


@pytest.fixture
def tiny() -> ModelConfig:
    return TINY


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two pictures with a bright square each where the box is, and a dark rectangle of the other class."""
    images, targets = [], []
    for shift in (0, 20):
        image = torch.full((3, 96, 128), 0.5) + 0.02 * torch.rand(3, 96, 128)
        image[:, 10 + shift : 42 + shift, 20:52] = 0.95
        image[:, 50:80, 70 : 110 - shift] = 0.05
        boxes = torch.tensor([[20.0, 10 + shift, 52, 42 + shift], [70, 50, 110 - shift, 80]])
        images.append(image)
        targets.append({"boxes": boxes, "labels": torch.tensor([0, 1])})
    return images, targets
