"""The detector: backbone, pyramid, heads, targets, losses, detections, and where its first weights come from."""

from ghmdet.models.loss import BOX_LOSSES, CLS_LOSSES, DetectionLoss, LossConfig
from ghmdet.models.presets import PRESETS, ModelConfig, preset
from ghmdet.models.retinanet import RetinaNet
from ghmdet.models.weights import load_weights, model_from_state, model_state

__all__ = [
    "BOX_LOSSES",
    "CLS_LOSSES",
    "PRESETS",
    "DetectionLoss",
    "LossConfig",
    "ModelConfig",
    "RetinaNet",
    "load_weights",
    "model_from_state",
    "model_state",
    "preset",
]
