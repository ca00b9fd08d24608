"""Data sets of images and boxes: reading, checking, augmenting, batching."""

from __future__ import annotations

from ghmdet.data.check import check_data, format_problems, has_errors, in_both
from ghmdet.data.dataset import DetectionDataset, Draw
from ghmdet.data.images import require_images
from ghmdet.data.loader import DetectionLoader, EpochBatches, make_loader
from ghmdet.data.read import read_data
from ghmdet.data.records import DetectionData, Problem, Record, Records
from ghmdet.data.share import folds, share_out
from ghmdet.data.transforms import AugmentConfig, eval_transforms, train_transforms

__all__ = [
    "AugmentConfig",
    "DetectionData",
    "DetectionDataset",
    "DetectionLoader",
    "Draw",
    "EpochBatches",
    "Problem",
    "Record",
    "Records",
    "check_data",
    "eval_transforms",
    "folds",
    "format_problems",
    "has_errors",
    "in_both",
    "make_loader",
    "read_data",
    "require_images",
    "share_out",
    "train_transforms",
]
