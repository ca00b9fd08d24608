from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import naive
from ghmdet import functional as ghm


def test_sigmoid_norm_is_the_size_of_the_gradient_of_cross_entropy():
    logits = torch.linspace(-8, 8, 65, dtype=torch.float64).requires_grad_()
    targets = torch.linspace(0, 1, 65, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        F.binary_cross_entropy_with_logits(logits, targets, reduction="sum"), logits
    )
    torch.testing.assert_close(ghm.sigmoid_gradient_norm(logits, targets), gradient.abs())


def test_sigmoid_norm_of_labels_is_that_of_their_one_hot_form_and_zero_where_ignored():
    logits = torch.randn(6, 3)
    labels = torch.tensor([0, 1, 2, 3, -1, 3])
    norm = ghm.sigmoid_gradient_norm(logits, labels)
    one_hot = F.one_hot(labels.clamp_min(0), 4)[:, :3].float()
    torch.testing.assert_close(norm[:4], ghm.sigmoid_gradient_norm(logits, one_hot)[:4])
    assert (norm[4] == 0).all()


@pytest.mark.parametrize("layout", [(7, 4), (2, 4, 3, 5)])
def test_softmax_norm_is_the_gradient_at_the_labelled_class(layout):
    logits = torch.randn(layout, dtype=torch.float64).requires_grad_()
    labels = torch.randint(4, layout[:1] + layout[2:])
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    expected = gradient.gather(1, labels.unsqueeze(1)).squeeze(1).abs()
    torch.testing.assert_close(ghm.softmax_gradient_norm(logits, labels), expected)


def test_softmax_norm_is_zero_where_ignored_and_keeps_small_norms_apart():
    norm = ghm.softmax_gradient_norm(torch.tensor([[20.0, 0.0], [0.0, 0.0]]), torch.tensor([0, -100]))
    assert norm[0].item() == pytest.approx(2.061e-9, rel=1e-3)  # 1 − p rounds to 0 in float32
    assert norm[1] == 0


@pytest.mark.parametrize("kind", ["smooth_l1", "asl1"])
def test_regression_norm_is_the_size_of_the_gradient_of_its_loss(kind):
    diff = torch.linspace(-0.5, 0.5, 98, dtype=torch.float64).requires_grad_()
    zeros = torch.zeros_like(diff)
    if kind == "smooth_l1":
        loss, norm = (
            ghm.smooth_l1_loss(diff, zeros, beta=0.1, reduction="sum"),
            ghm.smooth_l1_gradient_norm(diff, 0.1),
        )
    else:
        loss, norm = ghm.asl1_loss(diff, zeros, mu=0.1, reduction="sum"), ghm.asl1_gradient_norm(diff, 0.1)
    (gradient,) = torch.autograd.grad(loss, diff)
    torch.testing.assert_close(norm, gradient.abs())


def test_asl1_norm_equals_the_articles_and_never_exceeds_one():
    diff = torch.randn(1000) * 100
    norm = ghm.asl1_gradient_norm(diff, 0.02)
    expected = torch.tensor([naive.asl1_gradient_norm(d, 0.02) for d in diff.tolist()])
    torch.testing.assert_close(norm, expected)
    assert norm.max() <= 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ghm.softmax_gradient_norm(torch.zeros(2, 3), torch.zeros(3).long()), r"\(3,\).*\(2, 3\)"),
        (lambda: ghm.softmax_gradient_norm(torch.zeros(2, 3), torch.tensor([3, 0])), r"label 3 .*0\.\.2"),
        (lambda: ghm.softmax_gradient_norm(torch.zeros(2, 3), torch.zeros(2)), "float32"),
        (lambda: ghm.asl1_gradient_norm(torch.zeros(2), 0.0), "mu must be positive, not 0.0"),
        (lambda: ghm.smooth_l1_gradient_norm(torch.zeros(2), -1.0), "beta must be positive, not -1.0"),
    ],
)
def test_a_mistake_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()
