"""How long a run is: a plan that stands, or one that follows the clock where there is a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch.optim.lr_scheduler import LambdaLR

from ghmdet.engine.budget import MEASURED, Budget, Plan, seconds_in_words
from ghmdet.engine.optim import move_end
from ghmdet.engine.run_folder import CsvLog
from ghmdet.engine.settings import TrainConfig, seconds_of, validate_every
from ghmdet.errors import GhmdetError

PLAN_COLUMNS = ("step", "seconds", "planned_steps", "validate_every", "step_seconds", "validation_seconds")
REHEARSAL = 0.05
"""Share of a budget that a rehearsal may take."""


class Pacing:
    """A run's plan. With a budget it is rank 0's, whose clock decides; without one nothing here looks at a clock.

    Args:
        config: the settings.
        per_epoch: optimizer steps in an epoch.
        schedule: the learning rate, of `warmup_cosine`; its end moves with the plan.
        out: the run's folder; every plan of a budget is a row of `plan.csv` there.
        began: the reading of `time.monotonic()` from which the run's time counts.
        reports: whether the run is to end with a report.
        main: whether this is rank 0.
        say: takes each line meant for the user.
    """

    def __init__(
        self,
        config: TrainConfig,
        per_epoch: int,
        schedule: LambdaLR,
        out: Path,
        *,
        began: float,
        reports: bool,
        main: bool,
        say: Callable[[str], None],
    ) -> None:
        epochs = config.total_epochs
        self.plan = Plan(epochs * per_epoch, config.val_every or validate_every(epochs))
        self.given, self.per_epoch, self.schedule = config.budget, per_epoch, schedule
        self.main, self.say, self.began = main, say, began
        self.log = CsvLog(out / "plan.csv", PLAN_COLUMNS)
        self.budget: Budget | None = None
        if config.budget:
            self.budget = Budget(seconds_of(config.budget), began, per_epoch, config.val_every, reports)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        if not self.budget:
            return {}
        measured = {name: getattr(self.budget, name) for name in MEASURED}
        return {"steps": self.plan.steps, "every": self.plan.every, "measured": measured}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on with the plan and the pace of a run of so many steps; without a budget the settings tell the plan."""
        if not self.budget:
            return
        self.plan = Plan(state["steps"], self.budget.every or state["every"])
        for name, value in state["measured"].items():
            setattr(self.budget, name, value)
        if self.main:
            self.log.start(step)
        if step % self.per_epoch == 0:  # the time since the last save is lost
            self._follow(self.budget.revise(self.plan, step), step)

    @property
    def epochs(self) -> int:
        """The epochs of the plan, the last of which may be cut."""
        return math.ceil(self.plan.steps / self.per_epoch)

    def rehearsal_over(self, seconds: float) -> bool:
        """Whether a rehearsal that has taken so long must end."""
        assert self.budget
        return bool(_agreed(seconds > REHEARSAL * self.budget.seconds))

    def rehearsed(self, step: float, validation: float) -> None:
        """Plan the run from the time of a step and of a validation.

        Raises:
            GhmdetError: not even one step fits.
        """
        assert self.budget
        self.budget.rehearsed(step, validation)
        self.plan = _agreed(self.budget.plan(0))
        if not self.plan.steps:
            least, epoch = (_up(self.budget.needs(steps)) for steps in (1, self.per_epoch))
            raise GhmdetError(
                f"--budget {self.given} has no time for a step and a validation: give at least {least}, or {epoch} for"
                " an epoch"
            )

    def begin(self, saving: float) -> None:
        """Say the first plan, after saving, as after each epoch, was seen to take so long."""
        if self.budget:
            if self.main:
                self.log.start()
            self.budget.rehearsed(self.budget.step + saving / self.per_epoch, self.budget.validation)
            self._adopt(_agreed(self.budget.plan(0)), 0)

    def begin_epoch(self, step: int) -> None:
        """Note that an epoch, or the rest of one, begins after so many steps of the run."""
        if self.budget:
            self.budget.begin_epoch(step)

    def end_epoch(self, step: int) -> None:
        """Note that it is over and saved, and plan anew where that is called for."""
        if self.budget:
            self.budget.end_epoch(step)
            self._follow(self.budget.revise(self.plan, step), step)

    def end_look(self, step: int) -> None:
        """Let the run end within this epoch where its rest does not fit."""
        if self.budget:
            self._follow(self.budget.within_epoch(self.plan, step), step)

    def validated(self, seconds: float, step: int) -> None:
        """Note how long a validation after so many steps took, saving included."""
        if self.budget:
            self.budget.validated(seconds, step)

    def _follow(self, plan: Plan, step: int) -> None:
        if (plan := _agreed(plan)) != self.plan:
            self._adopt(plan, step)

    def _adopt(self, plan: Plan, step: int) -> None:
        assert self.budget
        self.plan = plan = Plan(max(1, plan.steps), plan.every)  # a run leaves a detector
        move_end(self.schedule, plan.steps)
        self.say(
            f"--budget {self.given}: {self.budget.words(plan)}"
            + f", planned anew at step {step}" * (step > 0)
        )
        if self.main:
            seconds = round(time.monotonic() - self.began, 1)
            pace = (round(self.budget.step, 4), round(self.budget.validation, 2))
            values = (step, seconds, plan.steps, plan.every, *pace)
            self.log.append(dict(zip(PLAN_COLUMNS, values, strict=True)))

    @property
    def can_report(self) -> bool:
        """Whether there is time for a report."""
        return self.budget is None or self.budget.can_report

    def end(self) -> None:
        """Say how long it took, and which command does the same without a clock."""
        if not self.budget:
            return
        same = f"--epochs {self.epochs} --val-every {self.plan.every}"
        if len(self.log.rows()) > 1 or self.plan.steps % self.per_epoch:
            same = f"{same} comes nearest without a clock, since the plan changed or cut an epoch (plan.csv)"
        else:
            same = f"{same} does the same without a clock"
        used = time.monotonic() - self.began
        late = ", too long" * (used > self.budget.seconds)
        self.say(f"--budget {self.given}: ended after {seconds_in_words(used)}{late}; {same}")


def _agreed(value: Any) -> Any:
    """Rank 0's value, on every rank: the others' clocks differ."""
    return broadcast_object_list([value])[0]


def _up(seconds: float) -> str:
    return f"{math.ceil(seconds)}s"
