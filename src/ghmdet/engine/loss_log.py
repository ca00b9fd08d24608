"""The losses of a run: kept until they are read, checked, and written a row a step."""

from collections.abc import Callable

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ghmdet.engine.context import RunContext
from ghmdet.engine.run_folder import CsvLog
from ghmdet.errors import GhmdetError

LOSSES = ("classification", "bbox_regression")
LOG_COLUMNS = ("step", "epoch", "lr", "loss", *LOSSES, "grad_norm")


class NonFiniteLoss(GhmdetError):
    """The loss or its gradient became infinite or NaN; the message names the pictures of the batch."""


class LossLog(CsvLog):
    """`log.csv` of a run, and the values of the batches that are not in it yet: reading them makes a GPU wait.

    file_names: gives the names of pictures by their ids.
    """

    every_step = True

    def __init__(self, run: RunContext, file_names: Callable[[list[int]], list[str]]) -> None:
        super().__init__(run.folder / "log.csv", LOG_COLUMNS)
        self.run, self.file_names = run, file_names
        self.unread: list[tuple[dict[str, float], Tensor, list[int]]] = []

    def keep(self, row: dict[str, float], values: Tensor, ids: list[int]) -> None:
        """Keep a batch: its step, epoch and rate; float [4] loss, its two parts, gradient norm; ids of its pictures."""
        self.unread.append((row, values, ids))

    def read(self, *wishes: bool) -> list[bool]:
        """Write the losses since the last look (one row a step, the mean over batches and ranks) and check them.

        Returns, for each wish, whether any rank has it: ranks that save or stop must do so at the same step.

        Raises:
            NonFiniteLoss: naming the pictures of the first batch whose loss or gradient is not finite.
        """
        wished = torch.zeros(len(LOSSES) + 2, device=self.run.accelerator.device)
        wished[: len(wishes)] = torch.tensor(wishes)
        mine = torch.stack([*(values for _, values, _ in self.unread), wished])
        everyone = self.run.accelerator.reduce(mine, "mean").cpu()
        everyone, wished = everyone[:-1], everyone[-1]
        self._check(everyone)
        if self.run.main:
            rows = []
            for step in dict.fromkeys(row["step"] for row, _, _ in self.unread):
                places = [i for i, (row, _, _) in enumerate(self.unread) if row["step"] == step]
                means = everyone[places].mean(0)
                means[-1] = everyone[places[-1], -1]  # only the batch that steps has a gradient norm
                values = dict(zip(LOG_COLUMNS[3:], means.tolist(), strict=True))
                rows.append(self.unread[places[0]][0] | values)
            self.append(*rows)
        self.unread.clear()
        return [bool(wish > 0) for wish in wished[: len(wishes)]]

    def _check(self, values: Tensor) -> None:
        # In fp16 losses are scaled: a gradient that overflows is then no divergence, its step is left out.
        watched = values[:, :3] if self.run.device.precision == "fp16" else values
        bad = (~watched.isfinite().all(1)).nonzero().flatten().tolist()
        if not bad:
            return
        row, _, ids = self.unread[bad[0]]
        told = ", ".join(
            f"{name} {value:g}" for name, value in zip(LOG_COLUMNS[3:], values[bad[0]].tolist(), strict=True)
        )
        last = self.run.folder / "last.pt"
        full = " or --precision fp32," if self.run.device.precision != "fp32" else ""
        good = f" from the last good checkpoint, --weights {last}," if last.exists() else ""
        raise NonFiniteLoss(
            f"the loss is not finite at step {row['step']} ({told}); pictures of the batch:"
            f" {', '.join(self.file_names(gather_object(ids)))}: look at them with `ghmdet data check`, or start again"
            f"{good} with a lower --lr, --cls-weight or --box-weight,{full} and another --out"
        )
