"""Why imbalance breaks a classifier, in seconds: the article's two examples, with a logistic model of two weights.

    python examples/imbalance_toy.py --out imbalance_toy.svg

1. 1000 negatives and 10 positives that overlap: does the model "predict everything as negative"?
2. 100,000 easy examples and 10 hard ones: are the hard "just treated as outliers"? They are positives that look like
   negatives, but for a second feature that only they have (a golden bus).

Each loss trains the same model from zero. The table says which share of the gradient the few have at the start and at
the end, and what is predicted for them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ghmdet.functional import binary_cross_entropy, ghm_c_loss, ohem_loss, sigmoid_focal_loss

STEPS, RATE = 400, 0.02  # of Adam, on all examples at once


class Problem(NamedTuple):
    """Examples [n, 2], their labels [n] of 0 and 1, and which of them [n] are the few."""

    title: str
    features: Tensor
    labels: Tensor
    few: Tensor


def few_positives() -> Problem:
    """1000 negatives around 0 and 10 positives around 1.5, each with a deviation of 1."""
    labels = torch.cat([torch.zeros(1000), torch.ones(10)])
    features = torch.stack([torch.randn(1010) + 1.5 * labels, torch.zeros(1010)], dim=1)
    return Problem("1000 negatives, 10 positives", features, labels, labels > 0)


def few_hard() -> Problem:
    """100,000 easy examples around -2 and 2, and 10 positives around -2 that a second feature tells from negatives."""
    half = 50_000
    labels = torch.cat([torch.zeros(half), torch.ones(half + 10)])
    few = torch.arange(2 * half + 10) >= 2 * half
    first = 0.5 * torch.randn(len(labels)) + torch.where((labels > 0) & ~few, 2.0, -2.0)
    return Problem(
        "100,000 easy, 10 hard",
        torch.stack([first, few + 0.1 * torch.randn(len(labels))], dim=1),
        labels,
        few,
    )


def balanced(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with positives and negatives at half of the weight each."""
    loss, positive = binary_cross_entropy(logits, labels, reduction="none"), labels > 0
    return (loss[positive].mean() + loss[~positive].mean()) / 2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": binary_cross_entropy,
    "ce, both kinds alike": balanced,
    "ohem": ohem_loss,
    "focal": lambda logits, labels: sigmoid_focal_loss(logits, labels, reduction="sum") / labels.sum(),
    "ghm-c-published": ghm_c_loss,
    "ghm-c, guarded": lambda logits, labels: ghm_c_loss(
        logits, labels, min_count="positives", normalize="none", reduction="sum"
    ),
}


class Course(NamedTuple):
    """How a training went: the few's mean probability before each step, and the logits [n] at its end."""

    probability: list[float]
    logits: Tensor


def train(problem: Problem, loss: Callable[[Tensor, Tensor], Tensor]) -> Course:
    """Fit a logistic model from zero."""
    weights = torch.zeros(2, requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([weights, bias], lr=RATE)
    probability = []
    for _ in range(STEPS):
        logits = problem.features @ weights + bias
        probability.append(logits.detach()[problem.few].sigmoid().mean().item())
        optimizer.zero_grad()
        loss(logits, problem.labels).backward()
        optimizer.step()
    return Course(probability, logits.detach())


def gradient_share(problem: Problem, loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor) -> float:
    """The share of the few in the sum of |dL/dx| over all examples."""
    logits = logits.clone().requires_grad_()
    loss(logits, problem.labels).backward()
    assert logits.grad is not None
    size = logits.grad.abs()
    return (size[problem.few].sum() / size.sum()).item()


def main() -> None:
    """Print the table and draw the courses."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("imbalance_toy.svg"))
    out = parser.parse_args().out
    torch.manual_seed(0)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, problem in zip(figure.subplots(1, 2, sharey=True), (few_positives(), few_hard()), strict=True):
        print(f"{problem.title}\n{'':22}gradient of the few     the few    found   others right")
        for name, loss in LOSSES.items():
            course = train(problem, loss)
            start = gradient_share(problem, loss, torch.zeros_like(course.logits))
            end = gradient_share(problem, loss, course.logits)
            right = (course.logits > 0) == (problem.labels > 0)
            print(
                f"{name:22}{start:9.3%} -> {end:7.3%}   p {course.probability[-1]:.3f}"
                f"   {right[problem.few].float().mean():6.0%}   {right[~problem.few].float().mean():11.2%}"
            )
            axes.plot(course.probability, label=name)
        axes.set(title=problem.title, xlabel="step", ylim=(0, 1))
        axes.axhline(0.5, color="#888", linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.get_axes()[0].set_ylabel("mean probability of the few")
    figure.savefig(out)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
