"""The time of a run (`ghmdet train --budget`): how much of it is used, and when the end must begin."""

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ghmdet.engine.settings import VALIDATIONS

SCORING = 4.0
"""Seconds of a validation that its pictures do not explain: scoring, drawing, saving."""
END = 3.0
"""Seconds from a run's last line to the end of its process, which gives back gigabytes: 2.4 s on a busy machine."""
REPORT = (6.0, 2.0)
"""Seconds that a report takes, and validations: it runs the detector over the same pictures once more, in float32."""
REPORTING = 0.1
"""Share of the time that a report may take; where it would take more there is none."""
VALIDATING = 0.2
"""Share of the time that validations may take, apart from the last."""
LOOKS = 5
"""Looks at the clock whose median is the present pace, so that one stall does not count."""
KEPT = ("first", "share", "validations", "validation_due")


@dataclass
class Budget:
    """How far a run is by the clock; all times in seconds.

    Most of the time is for training; a reserve is kept for the last validation, the report and the end of the process,
    as long as they would take at the present pace. `share` is how much of the training time is used: it is found anew
    at each look, never falls, and ends the training when it is 1.

    Args:
        seconds: the time of the whole command; `math.inf` without a budget, whose share stays 0.
        elapsed: gives the time of the run so far.
        interval: steps until the next look; with a budget about one a second, but no more than this.
        batches: batches of a validation; until one was timed, each is taken to last as long as a step, or as `batch`.
        reports: whether the run is to end with a report.
        agree: gives rank 0's list of values to every rank, whose clocks differ.
        batch: how long such a batch took in a rehearsal.
    """

    seconds: float
    elapsed: Callable[[], float]
    interval: int
    batches: int
    reports: bool
    agree: Callable[[list[Any]], list[Any]] = lambda mine: mine
    batch: float = math.inf

    def __post_init__(self) -> None:
        self.share, self.validation_due = 0.0, False
        self._most, self.interval = self.interval, 1 if math.isfinite(self.seconds) else self.interval
        self.first = math.nan  # when training began, in seconds of the run
        self.validations: list[tuple[float, float]] = []  # how long each took, and the pace at that time
        self._share_then, self._since = 0.0, math.nan  # share and time of the last validation
        self._paces: deque[float] = deque(maxlen=LOOKS)  # seconds a step
        self._looks = 0
        self._last = (math.nan, 0)
        self._ease = 1.0  # how long a batch of a validation takes, in steps

    @property
    def pace(self) -> float:
        """The time that a step takes at present."""
        return statistics.median_low(self._paces) if self._paces else 0.0

    @property
    def steady(self) -> bool:
        """Whether the pace is known well enough to say how long a run will take: the first steps may be slow ones."""
        return self._looks >= 2 * LOOKS

    @property
    def validation(self) -> float:
        """The time that a validation will take: that of the last ones, or more if steps take longer since."""
        if not self.validations:
            return SCORING + self.batches * self.pace * self._ease
        now = self.pace
        return statistics.median_high(took * max(1.0, now / then) for took, then in self.validations[-3:])

    @property
    def reporting(self) -> float:
        """The time that the report will take."""
        return REPORT[0] + REPORT[1] * self.validation

    @property
    def can_report(self) -> bool:
        """Whether there is still time for it."""
        return self.seconds - self.elapsed() > self.reporting + END

    def continue_from(self, step: int) -> None:
        """Note that training goes on after `step` steps; the time since the last look was not spent on steps."""
        if math.isnan(self.first):
            self.first = self.elapsed()
        if math.isnan(self._since):
            self._since, self._share_then = self.elapsed(), self.share
        self._last = (self.elapsed(), step)

    def look(self, step: int) -> None:
        """Note that `step` steps are done, and look at the clock."""
        used, (before, steps) = self.elapsed(), self._last
        if step > steps:
            self._paces.append((used - before) / (step - steps))
            self._looks += 1
        self._last = (used, step)
        if math.isinf(self.seconds) or len(self._paces) < 2:
            return  # the first step is slow on every machine
        if len(self._paces) == 2:
            self._ease = min(1.0, self.batch / max(self.pace, 1e-9))
        report = self.reporting if self.reports and self.reporting <= REPORTING * self.seconds else 0.0
        reserve = 1.25 * self.validation + report + END + 0.01 * self.seconds
        interval = min(self._most, max(1, int(1 / max(self.pace, 1e-9))))
        left = self.seconds - used - reserve - interval * self.pace
        share = (used - self.first) / (used - self.first + left) if left > 0 else 1.0
        # Before and after a validation at least four times as long is trained.
        apart = (1 / VALIDATING - 1) * self.validation
        due = share >= self._share_then + 1 / VALIDATIONS and min(used - self._since, left) >= apart
        agreed = self.agree([min(1.0, max(self.share, share)), due, interval])
        self.share, self.validation_due, self.interval = agreed

    def validated(self, seconds: float) -> None:
        """Note that a validation is over, and how long it took, saving included."""
        self.validations.append((seconds, self.pace or math.inf))
        self._since, self._share_then = self.elapsed(), self.share

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {name: getattr(self, name) for name in KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        vars(self).update({name: state[name] for name in KEPT if name in state})  # older ones have less


def in_words(seconds: float) -> str:
    """A time to say aloud.

    >>> in_words(0.0613), in_words(8.21), in_words(75), in_words(7300)
    ('0.061 s', '8.2 s', '1 min 15 s', '121 min')
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if rest and minutes < 60 else f"{minutes} min"
