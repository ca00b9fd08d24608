"""What harmonizing gives outside of detection: a classifier of long-tailed digits, and a small segmentation.

    pip install scikit-learn && python benchmarks/long_tail.py digits && python benchmarks/long_tail.py shapes

digits: scikit-learn's, 8x8 pixels; the commonest class has 100 training pictures, the rarest 1. Balanced accuracy in %
on 40 other pictures of each class. shapes: made pictures of discs, squares and thin lines (.7 % of the pixels); the
ring around each has no label (`ignore_index`). Mean IoU of the four classes in %. Each loss has, at each seed, the rate
and the setting that are best on held-out pictures. The row of results/long_tail.jsonl has the mean over seeds with half
of its 95 % interval, and the same of the difference from cross entropy, seed by seed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from ghmdet import SoftmaxGHMC
from rows import append_row, today

Loss, Part = Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]
RATES, IGNORED = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1), 255
STEPS, BATCH = {"digits": 600, "shapes": 300}, {"digits": 64, "shapes": 8}


def cross_entropy(counts: Tensor, weight: Tensor | None = None) -> Loss:
    return nn.CrossEntropyLoss(weight, ignore_index=IGNORED)


def focal(counts: Tensor, gamma: float) -> Loss:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        own = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        return ((1 - (-own).exp()) ** gamma * own).sum() / (labels != IGNORED).sum()

    return loss


def class_balanced(counts: Tensor, share: float) -> Loss:
    """Class-Balanced Loss (Cui et al. 2019)."""
    beta = 1 - share / float(counts.max())
    weight = (1 - beta) / (1 - beta ** counts.double())
    return cross_entropy(counts, (weight / weight.mean()).float())


def ghm(counts: Tensor, options: dict) -> Loss:
    return SoftmaxGHMC(len(counts), ignore_index=IGNORED, **options)


def arms(task: str) -> dict[str, tuple[Callable[..., Loss], tuple]]:
    common = {"background": 0 if task == "shapes" else None}
    forms = tuple(common | one for one in ({}, {"per_class": True}, {"min_count": 0}))
    peers = {"focal": (focal, (0.5, 1.0, 2.0)), "class-balanced ce": (class_balanced, (0.5, 5.0, 20.0))}
    return {"ce": (cross_entropy, (None,)), **peers, "SoftmaxGHMC": (ghm, forms)}


def digits(seed: int) -> tuple[Part, Part, Part]:
    """Training, held-out and test pictures [N, 1, 8, 8] with labels [N]."""
    from sklearn.datasets import load_digits

    numbers, (pixels, labels) = np.random.default_rng(seed), load_digits(return_X_y=True)
    parts = []
    for rank, k in enumerate(numbers.permutation(10)):
        places, keep = numbers.permutation(np.flatnonzero(labels == k)), round(100 * 100 ** (-rank / 9))
        parts.append((places[70 : 70 + keep], places[:30], places[30:70]))
    images, wanted = torch.tensor(pixels).float().view(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)
    return tuple((images[part], wanted[part]) for part in map(np.concatenate, zip(*parts, strict=True)))


def shapes(seed: int) -> tuple[Part, Part, Part]:
    """Training, held-out and test pictures [N, 1, 32, 32] with the label of each pixel [N, 32, 32]."""
    numbers, images, labels = np.random.default_rng(seed), [], []
    y, x = np.mgrid[:32, :32]
    for _ in range(130):
        image, label = numbers.normal(0, 0.5, (32, 32)), np.zeros((32, 32), int)
        for k in numbers.choice([1, 1, 2, 3], 2):
            (cy, cx), r, angle = numbers.uniform(6, 26, 2), numbers.uniform(3, 5), numbers.uniform(0, np.pi)
            across = np.abs((x - cx) * np.sin(angle) - (y - cy) * np.cos(angle))
            along = np.abs((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle))
            far = np.hypot(across, along) if k == 1 else np.maximum(across + (r - 1) * (k == 3), along)
            label[(far < r + 1) & (far >= r)] = IGNORED
            label[far < r], image[far < r] = k, image[far < r] + (-1 if k == 2 else 1)
        images.append(image[None]), labels.append(label)
    pixels, wanted = torch.tensor(np.array(images)).float(), torch.tensor(np.array(labels))
    return tuple((pixels[some], wanted[some]) for some in (slice(0, 40), slice(40, 70), slice(70, 130)))


def network(task: str) -> nn.Module:
    def block(into: int, out: int, far: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(into, out, 3, padding=far, dilation=far, bias=False)
        return [conv, nn.BatchNorm2d(out), nn.ReLU()]

    if task == "digits":
        return nn.Sequential(*block(1, 16), nn.MaxPool2d(2), *block(16, 32), nn.Flatten(), nn.Linear(512, 10))
    body = [*block(1, 12), *block(12, 12, 2), *block(12, 12, 4), *block(12, 12)]
    return nn.Sequential(*body, nn.Conv2d(12, 4, 1))


@torch.no_grad()
def score(task: str, model: nn.Module, part: Part) -> float:
    known = part[1] != IGNORED
    found, wanted = model.eval()(part[0]).argmax(1)[known], part[1][known]
    both, own = (torch.bincount(each, minlength=10) for each in (wanted[found == wanted], wanted))
    whole = own if task == "digits" else own + torch.bincount(found, minlength=10) - both
    return 100 * float((both / whole)[own > 0].mean())


def trained(task: str, loss: Loss, part: Part, rate: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model, generator = network(task).train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS[task])
    for _ in range(STEPS[task]):
        some = torch.randperm(len(part[0]), generator=generator)[: BATCH[task]]
        optimizer.zero_grad()
        loss(model(part[0][some]), part[1][some]).backward()
        optimizer.step(), schedule.step()
    return model


def interval(values: np.ndarray) -> list[float]:  # 2.776: Student's t with 4 degrees of freedom
    return [round(float(values.mean()), 2), round(2.776 * float(values.std(ddof=1)) / 5**0.5, 2)]


def main(task: str) -> None:
    torch.set_num_threads(1)
    seen: dict[str, list[tuple[float, float, str]]] = {arm: [] for arm in arms(task)}
    for seed in range(5):
        train, held_out, test = (digits if task == "digits" else shapes)(seed)
        counts = train[1][train[1] != IGNORED].bincount()
        for arm, (loss, settings) in arms(task).items():
            tried = []
            for (number, one), rate in product(enumerate(settings), RATES):
                model = trained(task, loss(counts, one), train, rate, seed)
                tried.append((score(task, model, held_out), score(task, model, test), f"{number}, {rate:g}"))
            seen[arm].append(max(tried))
    row = {"date": today(), "task": task, "torch": torch.__version__}
    for arm, chosen in seen.items():
        values, own = (np.array([value for _, value, _ in seen[name]]) for name in (arm, "ce"))
        row[arm] = {"score": interval(values), "over ce": interval(values - own)}
        row[arm] |= {"seeds": values.round(2).tolist(), "chosen": Counter(how for _, _, how in chosen)}
    append_row("long_tail", row)


if __name__ == "__main__":
    main(sys.argv[1])
