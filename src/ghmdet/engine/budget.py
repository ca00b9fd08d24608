"""The plan of `ghmdet train --budget`: how many steps fit into the time, at the pace measured so far."""

from __future__ import annotations

import math
import statistics
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

SLACK = 0.03
"""Share of the time left that a new plan does not use, so that it stands when the machine is a little slower."""
GAIN = 0.05
"""Least share of a plan's steps by which a longer one must exceed it."""
WHOLE_EPOCHS = 10
"""A plan of at least so many epochs consists of whole ones, which loses at most a tenth of the time."""
VALIDATIONS = 10
VALIDATING = 0.2
"""Share of the budget that validations may take."""
END = 3.0
"""Seconds from a run's last line to the end of its process, which gives back gigabytes: 2.4 s on a busy machine."""
REPORT = (6.0, 2.0)
"""Seconds that a report takes, and validations: it runs the detector over the same pictures once more, in float32."""
REPORTING = 0.1
"""Share of the budget that a report may take; where it would take more there is none."""
MEASURED = ("steps", "validations", "validated_at", "step_then")
"""What a resumed run takes over of its budget's fields."""
WARM_STEPS = 50
"""A first epoch of fewer steps tells nothing of the later ones: it reads pictures that they find in memory."""
LOOKS = 5
"""Looks at the clock from which the present pace is judged."""
MANY_STEPS = 20
"""Steps of an epoch from which its pace is judged before it ends."""
Look = tuple[float, int]
"""Seconds of training so far, validations apart, and the step."""


@dataclass(frozen=True)
class Plan:
    """The optimizer steps of a whole run, and the epochs between two validations."""

    steps: int
    every: int


@dataclass
class Budget:
    """A run's time, its pace so far, and the plans that follow from them; all times in seconds.

    Args:
        seconds: the time of the whole command.
        began: the reading of `clock` from which it counts.
        per_epoch: optimizer steps in an epoch.
        every: epochs between two validations; by default about ten in a run, fewer where they would take over 20 %.
        reports: whether time for a report is set aside.
        steps: the mean time of a step, with its share of loading and saving, in the epochs so far.
        validations: the times of the validations so far, with saving what they find.
        validated_at: the step of the last validation.
        step_then: the time of a step at that validation.
        clock: a clock.
    """

    seconds: float
    began: float
    per_epoch: int
    every: int | None = None
    reports: bool = False
    steps: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    validated_at: int = 0
    step_then: float = 0.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._trained, self._since = 0.0, self.clock()
        self._epoch: Look = (0.0, 0)
        self._looks: deque[Look] = deque(maxlen=LOOKS)
        self._first = True

    @property
    def step(self) -> float:
        """The time that a step takes: of three epochs, one unlike the others is not heard."""
        return statistics.median(self.steps[-3:]) if len(self.steps) > 3 else self.steps[-1]

    @property
    def present(self) -> float:
        """The time that the last few steps took each."""
        return _pace(self._looks[0], self._looks[-1]) if len(self._looks) == LOOKS else self.step

    @property
    def validation(self) -> float:
        """The time that a validation takes, rather too much than too little: as slow as steps have become since."""
        return max(self.validations[-3:]) * max(1.0, max(self.step, self.present) / self.step_then)

    def left(self) -> float:
        """The time left for steps and validations when the last validation, its saving and the end are set aside."""
        return self.seconds - (self.clock() - self.began) - self._reserve(self.seconds)

    def _reserve(self, seconds: float) -> float:
        reporting = self.reporting if self.reports and self.reporting <= REPORTING * self.seconds else 0.0
        return 1.25 * self.validation + reporting + END + 0.01 * seconds

    @property
    def reporting(self) -> float:
        """The time that a report takes."""
        return REPORT[0] + REPORT[1] * self.validation

    @property
    def can_report(self) -> bool:
        """Whether there is still time for one."""
        return self.seconds - (self.clock() - self.began) > self.reporting + END

    def needs(self, steps: int) -> float:
        """The least budget that has time for so many steps of a run that begins now."""
        used = self.clock() - self.began
        return (used + steps * self.step + self._reserve(0.0)) / 0.99

    def words(self, plan: Plan) -> str:
        """A plan as it is said aloud."""
        epochs = plan.steps / self.per_epoch
        validations = max(1, math.ceil(epochs / plan.every))
        return (
            f"{f'{epochs:.1f}'.removesuffix('.0')} epochs of {self.per_epoch} steps of {seconds_in_words(self.step)},"
            f" {validations} validation{'s' * (validations > 1)} of {seconds_in_words(self.validation)}"
        )

    def cost(self, steps: int, done: int, every: int, step: float | None = None) -> float:
        """The time of so many steps after `done`, with the validations on the way but not the last."""
        validations = math.ceil((done + steps - self.validated_at) / (every * self.per_epoch)) - 1
        return steps * (step or self.step) + max(0, validations) * self.validation

    def plan(self, done: int, step: float | None = None) -> Plan:
        """The longest plan that fits when `done` steps are done; one of no more steps where nothing fits.

        step: the time of a step, by default that of the epochs so far.
        """
        every = self.every or self._every(done + self._fitting(done, None, step))
        steps = done + self._fitting(done, every, step)
        if not self.every:  # validations take time, so that there are fewer epochs to share them out over
            every = self._every(steps)
            steps = done + self._fitting(done, every, step)
        whole = steps // self.per_epoch * self.per_epoch
        if whole > done and whole >= WHOLE_EPOCHS * self.per_epoch:
            steps = whole
        return Plan(steps, every)

    def _fitting(self, done: int, every: int | None, step: float | None) -> int:
        """The most steps that fit with validations `every` so many epochs, None for none but the last."""
        left = max(0.0, self.left()) * (1 - SLACK)
        most = int(left / (step or self.step))
        if every is None:
            return most
        return bisect_right(range(1, most + 1), left, key=lambda more: self.cost(more, done, every, step))

    def _every(self, steps: int) -> int:
        most = min(VALIDATIONS, max(1, int(VALIDATING * self.seconds / self.validation)))
        return max(1, math.ceil(steps / self.per_epoch / most))

    def revise(self, plan: Plan, done: int) -> Plan:
        """The plan to go on with after an epoch: `plan` itself unless it does not fit, or much more does."""
        if plan.steps <= done:
            return plan
        fresh = self.plan(done)
        if self.cost(plan.steps - done, done, plan.every) > self.left():
            return fresh
        more = fresh.steps - plan.steps
        return fresh if more >= max(self.per_epoch, GAIN * plan.steps) else plan

    def within_epoch(self, plan: Plan, done: int) -> Plan:
        """The plan to go on with after a step: `plan` itself unless it cannot wait for the epoch's end.

        It cannot where the rest of the epoch does not fit, or after many steps that tell that the whole does not.
        """
        self._looks.append(self._look(done))
        seen, pace = done - self._epoch[1], max(self.step, self.present)
        if seen >= LOOKS:
            pace = max(self.step, _pace(self._epoch, self._looks[-1]))
        left, rest = self.left(), min(plan.steps - done, -done % self.per_epoch)
        if rest * pace > left:
            return Plan(done + max(0, int(left * (1 - SLACK) / pace)), plan.every)
        if seen >= MANY_STEPS and rest and self.cost(plan.steps - done, done, plan.every, pace) > left:
            return self.plan(done, pace)
        return plan

    def rehearsed(self, step: float, validation: float) -> None:
        """Take the times of a step and a validation as those of before the run."""
        self.steps, self.validations, self.step_then = [step], [validation], step

    def validated(self, seconds: float, done: int) -> None:
        """Note how long a validation after `done` steps took, saving included."""
        self.validations.append(seconds)
        self.validated_at, self.step_then = done, self.step

    def begin_epoch(self, done: int) -> None:
        """Note that an epoch, or the rest of one, begins after `done` steps."""
        self._since = self.clock()
        self._epoch = self._look(done)

    def end_epoch(self, done: int) -> None:
        """Note that it is over, saving included."""
        end = self._look(done)
        steps = done - self._epoch[1]
        if steps and not (self._first and steps < WARM_STEPS):
            self.steps.append(_pace(self._epoch, end))
        self._trained, self._first = end[0], False

    def _look(self, done: int) -> Look:
        return self._trained + self.clock() - self._since, done


def _pace(before: Look, after: Look) -> float:
    return (after[0] - before[0]) / (after[1] - before[1])


def seconds_in_words(seconds: float) -> str:
    """A time to say aloud.

    >>> seconds_in_words(0.0613), seconds_in_words(8.21), seconds_in_words(75), seconds_in_words(7300)
    ('0.061 s', '8.2 s', '1 min 15 s', '121 min')
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if rest and minutes < 60 else f"{minutes} min"
