"""The mathematics of gradient harmonizing: pure functions of tensors (README.md beside this file explains them)."""

from ghmdet.functional.classification import (
    binary_cross_entropy,
    ghm_c_loss,
    ohem_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)
from ghmdet.functional.density import RegionCounts, gradient_density, harmonizing_weights, unit_region
from ghmdet.functional.gradient_norm import (
    asl1_gradient_norm,
    sigmoid_gradient_norm,
    smooth_l1_gradient_norm,
    softmax_gradient_norm,
)
from ghmdet.functional.regression import asl1_loss, balanced_l1_loss, ghm_r_loss, smooth_l1_loss
from ghmdet.functional.softmax import softmax_ghm_loss

__all__ = [
    "RegionCounts",
    "asl1_gradient_norm",
    "asl1_loss",
    "balanced_l1_loss",
    "binary_cross_entropy",
    "ghm_c_loss",
    "ghm_r_loss",
    "gradient_density",
    "harmonizing_weights",
    "ohem_loss",
    "quality_focal_loss",
    "sigmoid_focal_loss",
    "sigmoid_gradient_norm",
    "smooth_l1_gradient_norm",
    "smooth_l1_loss",
    "softmax_ghm_loss",
    "softmax_gradient_norm",
    "unit_region",
    "varifocal_loss",
]
