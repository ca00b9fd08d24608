"""The plan of `ghmdet train --budget`: how many epochs fit into the time, at the pace measured so far."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from ghmdet.config import validate_every

SPARE = 0.03
"""Share of a budget that no plan touches, for what was not measured: uneven steps, the end of the process."""
FIRST_STEPS = 4
"""Steps before the first plan; the first of them is slower than the others and not counted."""


@dataclass
class Budget:
    """Time and pace of a run, in seconds.

    seconds: the budget. every: epochs between two validations, by default about ten validations in a run.
    """

    seconds: float
    every: int | None = None
    validation: float = 0.0
    """A validation with its saving: a guess from the pace of training (`guess`), then as measured."""
    epochs: list[float] = field(default_factory=list)
    """The epochs so far, validations apart."""

    @property
    def deadline(self) -> float:
        """The time after which training must end, so that a last validation fits."""
        return self.seconds * (1 - SPARE) - self.validation

    def guess(self, steps: list[float], steps_per_epoch: int, batch_size: int, val_pictures: int) -> None:
        """Guess an epoch and a validation from the first steps: a picture needs half of its time in training."""
        step = statistics.median(steps[1:] or steps)
        self.epochs = [step * steps_per_epoch]
        self.validation = step / batch_size * val_pictures / 2 + 2.0

    def plan(self, elapsed: float, done: int) -> int:
        """The epochs that fit in all, of which `done` are done, after `elapsed` seconds."""
        pace = statistics.mean(self.epochs[-3:])
        left = self.seconds * (1 - SPARE) - elapsed
        return epochs_that_fit(left, pace, self.validation, done=done, every=self.every)


def epochs_that_fit(
    left: float, epoch: float, validation: float, *, done: int = 0, every: int | None = None
) -> int:
    """The most epochs in all, `done` included, whose rest fits into `left` seconds with its validations.

    epoch, validation: seconds of one. every: epochs between validations, by default `validate_every` of the whole.

    >>> epochs_that_fit(100, epoch=9, validation=1)
    10
    >>> epochs_that_fit(100, epoch=9, validation=1, done=30)
    40
    >>> epochs_that_fit(5, epoch=9, validation=1)
    0
    """
    for epochs in range(done + int(left // epoch), done, -1):
        step = every or validate_every(epochs)
        validations = epochs // step - done // step + (epochs % step > 0)
        if (epochs - done) * epoch + validations * validation <= left:
            return epochs
    return done
