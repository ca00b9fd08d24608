"""Data sets of images and boxes: reading, checking, augmenting, batching.

A name is imported when it is first used: readers of annotations need no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghmdet.data.check import check_data, format_problems, has_errors, in_both
    from ghmdet.data.dataset import DetectionDataset, Draw
    from ghmdet.data.images import require_images
    from ghmdet.data.loader import DetectionLoader, EpochBatches, make_loader
    from ghmdet.data.read import read_data
    from ghmdet.data.records import DetectionData, Problem, Record, Records
    from ghmdet.data.share import folds, share_out
    from ghmdet.data.transforms import AugmentConfig, EvalTransforms, TrainTransforms

__all__ = [
    "AugmentConfig",
    "DetectionData",
    "DetectionDataset",
    "DetectionLoader",
    "Draw",
    "EpochBatches",
    "EvalTransforms",
    "Problem",
    "Record",
    "Records",
    "TrainTransforms",
    "check_data",
    "folds",
    "format_problems",
    "has_errors",
    "in_both",
    "make_loader",
    "read_data",
    "require_images",
    "share_out",
]

_HOMES = {
    "check": "check_data format_problems has_errors in_both",
    "dataset": "DetectionDataset Draw",
    "images": "require_images",
    "loader": "DetectionLoader EpochBatches make_loader",
    "read": "read_data",
    "records": "DetectionData Problem Record Records",
    "share": "folds share_out",
    "transforms": "AugmentConfig EvalTransforms TrainTransforms",
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names.split():
            return getattr(import_module(f"ghmdet.data.{module}"), name)
    raise AttributeError(f"module 'ghmdet.data' has no attribute '{name}'")
