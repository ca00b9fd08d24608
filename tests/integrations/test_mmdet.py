from __future__ import annotations

import pytest
import torch

from ghmdet import GHMC
from ghmdet.integrations import MMDetGHMC


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("per_class", [False, True])
def test_it_is_ghm_c_called_as_mmdetection_calls(classes, per_class):
    logits, labels = torch.randn(50, classes, requires_grad=True), torch.randint(0, classes + 1, (50,))
    weight = (torch.rand(50) < 0.8).float() * 2
    loss = MMDetGHMC(classes, loss_weight=3.0, per_class=per_class)
    found = loss(logits, labels, weight, avg_factor=17.0)
    one_hot = torch.nn.functional.one_hot(labels, classes + 1)[:, :classes].float()
    plain = GHMC(per_class=per_class, num_classes=classes if per_class else None)
    expected = 3 * plain(logits, one_hot, weight > 0, weight)
    torch.testing.assert_close(found, expected)
    # Targets of the logits' shape, with weights of it, as the older heads give.
    again = MMDetGHMC(classes, loss_weight=3.0, per_class=per_class)
    dense = again(logits, one_hot, weight[:, None].expand(50, classes))
    torch.testing.assert_close(dense, expected)
    fresh = MMDetGHMC(classes, per_class=per_class)
    torch.testing.assert_close(fresh(logits, labels), fresh(logits, labels, torch.ones(50, classes)))


def test_it_says_what_it_is_not():
    with pytest.raises(ValueError, match="use_sigmoid=False"):
        MMDetGHMC(3, use_sigmoid=False)
    with pytest.raises(ValueError, match="reduction_override='sum'"):
        MMDetGHMC(3)(torch.randn(2, 3), torch.tensor([0, 3]), reduction_override="sum")
    assert MMDetGHMC(3).use_sigmoid
    assert "ghm_c.spectrum.total" in MMDetGHMC(3).state_dict()
