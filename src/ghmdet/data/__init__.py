"""Data sets of images and boxes: reading, checking, augmenting, batching.

A name is imported when it is first used: readers of annotations need no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghmdet.data.check import check_data as check_data
    from ghmdet.data.dataset import DetectionDataset as DetectionDataset
    from ghmdet.data.images import require_images as require_images
    from ghmdet.data.loader import make_loader as make_loader
    from ghmdet.data.read import read_data as read_data
    from ghmdet.data.records import DetectionData as DetectionData
    from ghmdet.data.share import share_out as share_out
    from ghmdet.data.transforms import AugmentConfig as AugmentConfig
    from ghmdet.data.transforms import EvalTransforms as EvalTransforms
    from ghmdet.data.transforms import TrainTransforms as TrainTransforms

_HOMES = {
    "AugmentConfig": "transforms",
    "DetectionData": "records",
    "DetectionDataset": "dataset",
    "EvalTransforms": "transforms",
    "TrainTransforms": "transforms",
    "check_data": "check",
    "make_loader": "loader",
    "read_data": "read",
    "require_images": "images",
    "share_out": "share",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ghmdet.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ghmdet.data' has no attribute '{name}'")
