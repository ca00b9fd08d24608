"""A class loss with mmdetection's interface, without mmdetection."""

from typing import Any

from torch import Tensor, nn

from ghmdet.errors import GhmdetError
from ghmdet.integrations.adapters import class_loss
from ghmdet.losses import GHMC


class MMDetGHMC(nn.Module):
    """GHM-C, guarded, as mmdetection calls its class losses; K = `num_classes`.

    For heads that call their class loss once a step over all levels, as FCOS does. RetinaNet's kind calls it for each
    level, and a density for each level is another loss.

    - `loss_weight` multiplies the loss. `per_class`: a density for each class. Options of `ghmdet.GHMC` follow.
    """

    use_sigmoid = True

    def __init__(
        self,
        num_classes: int,
        loss_weight: float = 1.0,
        use_sigmoid: bool = True,
        per_class: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if not use_sigmoid:
            raise GhmdetError(
                "use_sigmoid=False: MMDetGHMC is for sigmoid scores; SoftmaxGHMC is the softmax form"
            )
        self.ghm_c = GHMC(per_class=per_class, num_classes=num_classes if per_class else None, **options)
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """`loss_weight` times the loss of logits [N, K] against labels [N], K for background, or targets [N, K].

        Where `weight`, [N] or [N, K], is 0 nothing is counted; elsewhere it multiplies. `avg_factor` is not used: the
        floor of the guarded form counts the positives. Raises GhmdetError for a `reduction_override`.
        """
        if reduction_override not in (None, self.ghm_c.reduction):
            raise GhmdetError(
                f"reduction_override={reduction_override!r}: give reduction= when the loss is made"
            )
        if target.shape != pred.shape:
            return self.loss_weight * class_loss(self.ghm_c, pred, target, weight)
        valid = None if weight is None else weight > 0
        return self.loss_weight * self.ghm_c(pred, target, valid, weight)  # type: ignore[no-any-return]
