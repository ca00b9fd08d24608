"""The losses of a run: kept until they are read, checked, and written a row a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ghmdet.engine.run_folder import CsvLog
from ghmdet.errors import GhmdetError

LOSSES = ("classification", "bbox_regression")
LOG_COLUMNS = ("step", "epoch", "lr", "loss", *LOSSES, "grad_norm")


class NonFiniteLoss(GhmdetError):
    """The loss or its gradient became infinite or NaN; the message names the pictures of the batch."""


class LossLog(CsvLog):
    """`log.csv` of a run, and the values of the batches that are not in it yet: reading them makes a GPU wait.

    Args:
        out: the run's folder.
        accelerator: what the run was prepared with.
        file_names: the names of pictures by their ids.
        fp16: whether losses are scaled; a gradient that overflows is then no divergence, its step is left out.
    """

    def __init__(
        self,
        out: Path,
        accelerator: Accelerator,
        file_names: Callable[[list[int]], list[str]],
        *,
        fp16: bool,
    ) -> None:
        super().__init__(out / "log.csv", LOG_COLUMNS)
        self.last, self.accelerator, self.file_names, self.fp16 = (
            out / "last.pt",
            accelerator,
            file_names,
            fp16,
        )
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
        wished = torch.zeros(len(LOSSES) + 2, device=self.accelerator.device)
        wished[: len(wishes)] = torch.tensor(wishes)
        mine = torch.stack([*(values for _, values, _ in self.unread), wished])
        everyone = self.accelerator.reduce(mine, "mean").cpu()
        everyone, wished = everyone[:-1], everyone[-1]
        self._check(everyone)
        if self.accelerator.is_main_process:
            for step in dict.fromkeys(row["step"] for row, _, _ in self.unread):
                places = [i for i, (row, _, _) in enumerate(self.unread) if row["step"] == step]
                means = everyone[places].mean(0)
                means[-1] = everyone[places[-1], -1]  # only the batch that steps has a gradient norm
                values = dict(zip(("loss", *LOSSES, "grad_norm"), means.tolist(), strict=True))
                self.append(self.unread[places[0]][0] | values)
        self.unread.clear()
        return [bool(wish > 0) for wish in wished[: len(wishes)]]

    def _check(self, values: Tensor) -> None:
        watched = values[:, :3] if self.fp16 else values
        bad = (~watched.isfinite().all(1)).nonzero().flatten().tolist()
        if not bad:
            return
        row, _, ids = self.unread[bad[0]]
        if self.last.exists():
            mend = f"start again from the last good checkpoint, --weights {self.last}"
        else:
            mend = "start again"
        raise NonFiniteLoss(
            f"the loss is not finite at step {row['step']} ({_named(values[bad[0]])}); pictures of the batch:"
            f" {', '.join(self.file_names(gather_object(ids)))}: look at them with `ghmdet data check`, or {mend}"
            " with a lower --lr and another --out"
        )


def _named(values: Tensor) -> str:
    names = ("loss", *LOSSES, "gradient norm")
    return ", ".join(f"{name} {value:g}" for name, value in zip(names, values.tolist(), strict=True))
