"""What would help a detector most: rules that each turn measured numbers into at most one piece of advice."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict

import numpy as np

from ghmdet.engine.fitting import STEPS
from ghmdet.engine.run_folder import DIVERGED, read_json
from ghmdet.engine.settings import TrainConfig
from ghmdet.report.run_files import Course, read_course, require_run
from ghmdet.report.summary import words

MOST = 5  # pieces of advice
LEAST_GAIN = 0.005  # in AP50: less is no reason
SMALL = 16  # pixels in training: the size up to which more pixels help most
FEW_LABELS, FAR_BELOW = 50, 0.15  # labels of a class, and AP below that of the others
LEARNT = 0.005  # AP: less is none
RISEN = 2.0  # times the first step's loss; in runs that learn it falls
LARGE_RATE = 10 * TrainConfig.lr
LITTLE, FEW_OBJECTS = 0.1, 1000  # AP below which little is learnt, and labels that are few for a whole set
STILL_RISING, FALLEN = 0.01, 0.01  # AP
EPOCHS = "more `--epochs`"


class Advice(TypedDict):
    """What would help, for at most `gain` of AP50 as far as can be told: the measured reason, and what to do."""

    rule: str
    gain: float
    reason: str
    do: str


Gain = tuple[float, dict[str, Any]]  # how much of AP50 is at stake, and the values for a rule's words


def advise(
    found: Mapping[str, Any], labels: Mapping[str, int], course: Course, arguments: Mapping[str, Any]
) -> list[Advice]:
    """What would help most, first what could give most; empty where nothing stands out.

    found: the findings of an inspection. labels: how many of each class there are in training; empty where that is not
    known. course: how the run's scores went. arguments: what it was asked for.
    """
    found = {**found, "lost": {one["kind"]: one["AP50_lost"] for one in found["errors"]}}
    little = learnt_little(found, labels, course, arguments)
    gains = {
        "little": little,
        "small": small(found),
        "few_labels": few_labels(found, labels),
        "unlabelled": unlabelled(found),
        "confused": confused(found),
        "loose": loose(found),
        "rising": None if little and little[1]["longer"] else rising(course, arguments),
        "overfitted": overfitted(course, arguments),
    }
    advice = []
    for rule, (gain, values) in ((rule, one) for rule, one in gains.items() if one):
        if gain >= LEAST_GAIN:
            *reason, do = words(f"advise_{rule}", **values)  # a class's name may hold line breaks
            advice.append(Advice(rule=rule, gain=round(gain, 4), reason=" ".join(reason), do=do))
    return sorted(advice, key=lambda one: -one["gain"])[:MOST]


def failure(run: Path) -> str | None:
    """That a run diverged, has learnt nothing, lost what it had learnt, or raised its loss, with the likely reason.

    None for any other run, and for one that was not validated yet. Raises GhmdetError where the folder is no run.
    """
    if (run / DIVERGED).exists():
        return f"This run diverged: {(run / DIVERGED).read_text(encoding='utf-8', errors='replace').strip()}"
    course, arguments = read_course(run), require_run(run)["arguments"]
    AP, rate = course.AP[-1] if course.AP else 1.0, arguments.get("lr")
    rate = rate if isinstance(rate, (int, float)) else TrainConfig.lr
    risen = course.last_loss > RISEN * course.first_loss
    if AP >= LEARNT and not risen:
        return None
    likely = "large" if risen or rate > LARGE_RATE else "few" if course.steps < STEPS / 2 else "labels"
    best = max(course.AP, default=0.0)
    values = {"AP": AP, "best": best, "learnt": LEARNT, "risen": risen, "likely": likely, "rate": rate}
    more = _more(course, arguments)
    return " ".join(
        words("failure", course=course, data=arguments.get("data"), usual=STEPS, more=more, **values)
    )


def more_training(runs: Iterable[Path]) -> str:
    """What makes runs longer, in words: a larger budget where that ended one of them, else more epochs."""
    each = (
        _more(read_course(run), (read_json(run / "run.json") or {}).get("arguments") or {}) for run in runs
    )
    return next((more for more in each if more != EPOCHS), EPOCHS)


def _more(course: Course, arguments: Mapping[str, Any]) -> str:
    return "a larger `--budget`" if _time_that_ended(course, arguments) else EPOCHS


def learnt_little(
    found: Mapping[str, Any], labels: Mapping[str, int], course: Course, arguments: Mapping[str, Any]
) -> Gain | None:
    """The run was short, or the AP is near none, with the likeliest reason: steps, few labels, or what is labelled.

    The gain is all that is missing.
    """
    AP, AP50, many = found["metrics"]["AP"], found["metrics"]["AP50"], sum(labels.values())
    short = bool(course.epochs) and 0 < course.steps < STEPS / 2
    if AP is None or (AP >= LITTLE and not (short and course.finished)):
        return None
    rises = rising(course, arguments)
    longer = _longer(course, arguments, STEPS / course.steps) if short else rises and rises[1]["more"]
    values = {"AP": AP, "AP50": AP50, "steps": course.steps, "labels": many, "longer": longer}
    return 1 - AP50, values | {"little": AP < LITTLE, "few": 0 < many < FEW_OBJECTS, "usual": short and STEPS}


def _longer(course: Course, arguments: Mapping[str, Any], times: float) -> str:
    """The option that makes a run so many times as long, rounded up: of its epochs, or of the time that ended it."""
    if time := _time_that_ended(course, arguments):
        return f"--budget {math.ceil(times * float(time[1]))}{time[2]}"
    return f"--epochs {math.ceil(times * course.epochs[-1])}"


def _time_that_ended(course: Course, arguments: Mapping[str, Any]) -> re.Match[str] | None:
    """The budget's number and unit, if it was the budget that ended the run."""
    last, planned = course.epochs[-1] if course.epochs else 0, arguments.get("epochs")
    time = re.fullmatch(r"([\d.]+)([smh])", str(arguments.get("budget") or "").strip())
    return time if time and (not planned or last < planned) else None


def small(found: Mapping[str, Any]) -> Gain | None:
    """Most objects not seen are tiny in training and found less often than others, and the pictures have more pixels.

    The gain is that of finding the small ones as often as the others.
    """
    unseen, objects = found["unseen"], found["metrics"]["boxes"]
    if unseen["count"] < max(10, 0.05 * objects) or 2 * unseen["small"] <= unseen["count"]:
        return None
    (share, low), (_, high) = (_recall(found["sizes"], small=small) for small in (True, False))
    # Not above the pictures' own size, where pixels are only made up; not for a step that nobody would notice.
    size = 32 * min(unseen["own_size"] // 32, math.ceil(unseen["size"] * SMALL / unseen["median"] / 32))
    larger = size / unseen["size"]
    if larger < 1.2 or low >= high:
        return None
    values = unseen | {"to": size, "times": larger**2, "then": unseen["median"] * larger, "limit": SMALL}
    return share * (high - low), values


def few_labels(found: Mapping[str, Any], labels: Mapping[str, int]) -> Gain | None:
    """Classes with few labels in training and an AP far below that of those with more."""
    per_class = {name: one for name, one in found["metrics"]["per_class"].items() if one["AP"] is not None}
    many = [one for name, one in per_class.items() if labels.get(name, 0) >= FEW_LABELS]
    AP, AP50 = (fmean([one[key] for one in many] or [0.0]) for key in ("AP", "AP50"))
    few = {
        name: one | {"labels": labels[name]}
        for name, one in per_class.items()
        # Of fewer than five boxes an AP says nothing.
        if labels.get(name, FEW_LABELS) < FEW_LABELS and one["boxes"] >= 5 and one["AP"] < AP - FAR_BELOW
    }
    gain = sum(max(0.0, AP50 - one["AP50"]) for one in few.values()) / max(1, len(per_class))
    return gain, {"classes": few, "AP": AP, "limit": FEW_LABELS}


def unlabelled(found: Mapping[str, Any]) -> Gain | None:
    """Many very sure detections where nothing is labelled; more than there are labels is a bad detector."""
    count, objects = found["unlabelled"], found["metrics"]["boxes"]
    many = max(20, 0.05 * objects) <= count <= objects
    return (found["lost"]["background"], {"count": count, "objects": objects}) if many else None


def confused(found: Mapping[str, Any]) -> Gain | None:
    """Objects that are detected as another class; the pair of classes that is confused most often."""
    matrix, objects = np.array(found["confusion"]["matrix"])[:-1, :-1], found["metrics"]["boxes"]
    pairs = np.triu(matrix + matrix.T, k=1)
    count, times = int(pairs.sum()), int(pairs.max(initial=0))
    if count < max(5, 0.02 * objects):
        return None
    one, other = (found["classes"][k] for k in np.argwhere(pairs == times)[0])
    values = {"count": count, "objects": objects, "one": one, "other": other, "times": times}
    return found["lost"]["wrong class"], values


def loose(found: Mapping[str, Any]) -> Gain | None:
    """Objects are found, but badly located boxes cost more than any other kind of error."""
    lost, AP50, AP75 = found["lost"], found["metrics"]["AP50"], found["metrics"]["AP75"]
    cost = lost["badly located"]
    if AP50 is None or AP50 < 0.6 or AP75 > 0.7 * AP50 or cost < max(0.02, *lost.values()):
        return None
    return cost, {"AP50": AP50, "AP75": AP75, "lost": cost}


def rising(course: Course, arguments: Mapping[str, Any]) -> Gain | None:
    """A run that came to its end while its AP still rose; the gain is the last rise once more."""
    AP = course.AP
    if not course.finished or len(AP) < 3 or AP[-1] < max(AP) or AP[-1] - AP[-2] < STILL_RISING:
        return None
    more = _longer(course, arguments, 2)
    return AP[-1] - AP[-2], {"rise": AP[-1] - AP[-2], "epochs": course.epochs[-2:], "more": more}


def overfitted(course: Course, arguments: Mapping[str, Any]) -> Gain | None:
    """The AP fell for at least three validations while the training loss went on falling; the gain is that fall."""
    AP, loss = course.AP, course.loss
    best = AP.index(max(AP)) if AP else 0
    after = AP[best + 1 :]
    if len(after) < 3 or AP[best] - fmean(after[-3:]) < FALLEN or not loss[-1] < 0.9 * loss[best]:
        return None
    scale = (arguments.get("augment") or {}).get("scale") or (1, 1)
    values = {"epochs": (course.epochs[best], course.epochs[-1]), "AP": (AP[best], AP[-1])}
    return AP[best] - AP[-1], values | {"loss": (loss[best], loss[-1]), "varied": scale[0] <= 0.6}


def _recall(sizes: list[dict[str, Any]], *, small: bool) -> tuple[float, float]:
    """The share of the objects that are small, or are not, and the share of these that is found; of none, all."""
    mine = [one for one in sizes if one["boxes"] and (one["least"] < SMALL) == small]
    boxes = sum(one["boxes"] for one in mine)
    found = sum(one["boxes"] * one["recall"] for one in mine)
    return boxes / max(1, sum(one["boxes"] for one in sizes)), found / boxes if boxes else 1.0
