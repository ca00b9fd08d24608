"""The compatible mode against what the widely used implementation's own code gave."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet import GHMC, GHMR
from ghmdet.functional import balanced_l1_loss, quality_focal_loss, sigmoid_focal_loss, varifocal_loss
from measured_data import shared_data


def uniform(n: int, phase: int) -> Tensor:
    x = (torch.arange(n, dtype=torch.float64) + phase + 1) * 0.6180339887498949
    return x - x.floor()


def peer_logits(n: int, k: int, phase: int) -> Tensor:
    u = uniform(n * k, phase).clamp(1e-6, 1 - 1e-6)
    return (1.5 * torch.log(u / (1 - u)) - 2).float().view(n, k).requires_grad_()


def peer_labels(n: int, k: int, phase: int) -> Tensor:
    j = torch.arange(n) + phase
    return torch.where(j % 7 == 0, (j // 7) % k, k)


def peer_deltas(n: int, phase: int) -> Tensor:
    return ((uniform(n * 4, phase) - 0.5) * 0.4).float().view(n, 4).requires_grad_()


@pytest.fixture(scope="module")
def peer():
    return json.loads((shared_data("peer_losses") / "mmdet_3.3.0_losses.json").read_text())


def test_every_call_of_the_compatible_mode_has_the_peers_numbers(peer):
    losses = {}
    for row in peer["ghm"]:
        n, bins, momentum = row["n"], row["bins"], row["momentum"]
        key = (row["loss"], bins, momentum)
        if row["loss"] == "GHMC":
            loss = losses.setdefault(key, GHMC(bins=bins, momentum=momentum, compat="mmdet"))
            inputs, targets, masked = peer_logits(n, row["k"], row["phase"]), None, 13
            targets = peer_labels(n, row["k"], row["phase"])
        else:
            loss = losses.setdefault(key, GHMR(mu=row["mu"], bins=bins, momentum=momentum, compat="mmdet"))
            inputs, targets, masked = peer_deltas(n, row["phase"]), torch.zeros(n, 4), 9
        # A size other than 1, which the peer ignores.
        value = loss(inputs, targets, weight=(torch.arange(n) % masked != 0) * 2.5)
        value.backward()
        assert value.item() == pytest.approx(row["value"], rel=1e-5)
        assert inputs.grad.norm().item() == pytest.approx(row["grad_l2"], rel=1e-5)
        torch.testing.assert_close(inputs.grad[1], torch.tensor(row["grad_row_1"]), rtol=1e-5, atol=0)
        if row.get("acc_sum"):
            assert loss.spectrum.compute().regions[0].tolist() == pytest.approx(row["acc_sum"], rel=1e-6)
    assert len(peer["ghm"]) == 21


@pytest.mark.parametrize("name", ["sigmoid focal", "quality focal", "varifocal", "balanced L1"])
def test_the_other_losses_have_the_peers_numbers(peer, name):
    row = next(r for r in peer["others"]["rows"] if r["loss"].startswith(name))
    inputs, labels = peer_logits(301, 6, 2), peer_labels(301, 6, 2)
    qualities = F.one_hot(labels, 7)[:, :6] * uniform(301, 0)[:, None]
    if name == "balanced L1":
        inputs = (peer_deltas(200, 1).detach() * 6).requires_grad_()
        value = balanced_l1_loss(inputs, torch.zeros(200, 4), beta=1, reduction="sum")
    elif name == "sigmoid focal":
        value = sigmoid_focal_loss(inputs, labels, reduction="sum")
    else:
        loss = quality_focal_loss if name == "quality focal" else varifocal_loss
        value = loss(inputs, qualities, reduction="sum")
    value.backward()
    assert value.item() == pytest.approx(row["value"], rel=1e-5)
    assert inputs.grad.norm().item() == pytest.approx(row["grad_l2"], rel=1e-5)
