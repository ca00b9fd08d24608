"""Gradient norms: how strongly one example pulls at the model, a number in 0..1."""

import torch
from torch import Tensor

from ghmdet.errors import GhmdetError
from ghmdet.functional._arguments import check_labels, check_tensors, class_arguments, wide


def sigmoid_gradient_norm(logits: Tensor, targets: Tensor) -> Tensor:
    """The norm of the gradient of binary cross entropy by the logit, g = |p − p*| with p = sigmoid(x).

    Article, section "cross entropy". `logits` have any shape, `targets` the same (0..1) or integer labels without
    dimension 1 (K = background, negative = ignored: g is 0 there). float32, or float64 for float64 logits.
    Raises ValueError for shapes that do not fit and for targets outside 0..1.

    >>> sigmoid_gradient_norm(torch.tensor([0.0, 0.0, 100.0]), torch.tensor([1.0, 0.0, 0.0]))
    tensor([0.5000, 0.5000, 1.0000])
    """
    inputs, dense, valid = class_arguments(logits, targets).elements()
    return torch.where(valid, sigmoid_norm(inputs, dense), 0.0)


def softmax_gradient_norm(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of softmax cross entropy by the labelled class's logit, g = 1 − p_label.

    `logits` [N, C, ...] over all classes (background is one of them if the model has it), `labels` [N, ...] integers
    in 0..C-1, negative = ignored (g is 0 there). The result has the labels' shape. This is the softmax form of the
    article's |p − p*|; `ghmdet.functional.softmax_ghm_loss` weighs by it.
    Raises ValueError for shapes that do not fit and, on the CPU, for a label of C or more.

    >>> softmax_gradient_norm(torch.zeros(2, 4), torch.tensor([3, 0]))
    tensor([0.7500, 0.7500])
    """
    check_tensors(logits=logits, labels=labels)
    check_labels(logits, labels)
    norm = softmax_norm(logits.to(wide(logits)), labels.clamp_min(0).long())
    return torch.where(labels >= 0, norm, 0.0)


def smooth_l1_gradient_norm(diff: Tensor, beta: float = 1 / 9) -> Tensor:
    """The norm of the gradient of smooth L1 by the difference d: |d|/δ up to δ = `beta`, and 1 beyond.

    Article, section "smooth L1". Any shape. Raises ValueError unless `beta` is positive.

    >>> smooth_l1_gradient_norm(torch.tensor([-0.05, 0.2]), beta=0.1)
    tensor([0.5000, 1.0000])
    """
    check_tensors(diff=diff)
    check_positive("beta", beta)
    return (diff.abs() / beta).clamp_max(1)


def asl1_gradient_norm(diff: Tensor, mu: float = 0.02) -> Tensor:
    """The norm of the gradient of authentic smooth L1 by the difference d, gr = |d| / sqrt(d² + μ²).

    Article, section "smooth L1". Any shape. Raises ValueError unless `mu` is positive.

    >>> asl1_gradient_norm(torch.tensor([0.0, -0.02]), mu=0.02)
    tensor([0.0000, 0.7071])
    """
    check_tensors(diff=diff)
    check_positive("mu", mu)
    # The root may round to just below |d|.
    return (diff.abs() / asl1_root(diff, mu)).clamp_max(1)


def asl1_root(diff: Tensor, mu: float) -> Tensor:
    """sqrt(d² + μ²), also where d² is too large for a float."""
    return torch.hypot(diff, torch.full((), mu, dtype=diff.dtype, device=diff.device))


def sigmoid_norm(logits: Tensor, targets: Tensor) -> Tensor:
    """|sigmoid(x) − p*| of tensors that are already of one shape and precision."""
    return (torch.sigmoid(logits) - targets).abs()


def softmax_norm(logits: Tensor, labels: Tensor) -> Tensor:
    """1 − p_label of logits [N, C, ...] that are wide, and int64 labels [N, ...] in 0..C-1."""
    p = torch.softmax(logits, dim=1)
    # The sum of the other classes' p: 1 − p_label would round to 0.
    return p.scatter(1, labels.unsqueeze(1), 0.0).sum(1).clamp_max(1)


def check_positive(name: str, value: float) -> None:
    """Raise unless an option is a positive number."""
    if not value > 0:
        raise GhmdetError(f"{name} must be positive, not {value!r}")
