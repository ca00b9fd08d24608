from __future__ import annotations

import pytest
import torch

from operations import WAITS, Operations

X = torch.tensor([0.0, 1.0, 2.0])
READ = {
    "item": lambda: X.sum().item(),
    "if": lambda: bool((X > 0).any()),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(X > 0),
    "mask": lambda: X[X > 0],
    "write by mask": lambda: X.clone().__setitem__(X > 0, X[1:].clone()),
    "masked_select": lambda: X.masked_select(X > 0),
    "unique": lambda: X.unique(),
    "repeat_interleave": lambda: X.repeat_interleave(X.long()),
    "bincount": lambda: torch.bincount(X.long()),
    "equal": lambda: torch.equal(X, X),
}


@pytest.mark.parametrize("name", READ)
def test_what_reads_values_is_seen(name):
    with Operations() as seen:
        READ[name]()
    assert seen.names & WAITS


def test_what_reads_no_value_is_let_pass():
    with Operations() as seen:
        torch.where(X > 0, X, 0.0).index_select(0, X.long())[X.long()].sum()
    assert not seen.names & WAITS
