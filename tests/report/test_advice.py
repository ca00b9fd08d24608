"""Made sets and courses of which the right advice is known, and as many for which that advice would be wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_cases import found, make_detector_run, make_run

from ghmdet.evaluation.findings import find
from ghmdet.evaluation.hardest import Scored, hard_examples
from ghmdet.report.advice import Advice, advise, failure
from ghmdet.report.inspection import VERY_SURE, inspect_run
from ghmdet.report.page import write_report
from ghmdet.report.run_files import Course, read_course

NAMES = ("car", "bus")
Found = tuple[int, Sequence[float], float]  # class, box x y width height, score
ENDED = Course([4, 8, 12], [0.60, 0.62, 0.62], [1.0, 0.9, 0.8], finished=True)
NONE_UNSEEN = {"count": 0, "small": 0, "median": None, "size": 384, "own_size": None}


def look(
    detect: Callable[[int, int, list[float]], list[Found]], *, objects: int = 60, **known: Any
) -> list[Advice]:
    """The advice for `objects` pictures with one object of 60 px each, cars and buses in turn, and these detections.

    detect: from the number of a picture, its class and box to what is detected there. known: `labels`, `course`,
    `arguments`.
    """
    truth, results, hard = [], [], []
    for number in range(objects):
        label, box = number % 2, [100.0, 100.0, 60.0, 60.0]
        found = detect(number, label, box)
        truth.append({"image_id": number, "category_id": label, "bbox": box})
        results += [
            {"image_id": number, "category_id": k, "bbox": list(b), "score": score} for k, b, score in found
        ]
        scored = [
            Scored(np.array([[x, y, x + w, y + h] for _, (x, y, w, h), _ in rows]).reshape(-1, 4), *numbers)
            for rows in ([(k, b, s) for k, b, s in found], [(label, box, 0.0)])
            for numbers in [(np.array([k for k, _, _ in rows], dtype=int), np.array([s for *_, s in rows]))]
        ]
        hard += hard_examples(number, *scored, np.zeros((0, 4)))
    seen = find(
        {
            "images": [{"id": number} for number in range(objects)],
            "categories": [{"id": label, "name": name} for label, name in enumerate(NAMES)],
            "annotations": truth,
        },
        results,
    )
    findings = {
        "classes": seen.labels,
        "metrics": seen.metrics.to_dict(),
        "confusion": {"matrix": seen.confusion.tolist()},
        "errors": seen.errors,
        "sizes": seen.sizes,
        "unseen": NONE_UNSEEN,
        "unlabelled": sum(one.kind == "no label here" and one.score >= VERY_SURE for one in hard),
    }
    return advise(findings, known.get("labels", {}), known.get("course", ENDED), known.get("arguments", {}))


def right(number: int, label: int, box: list[float]) -> list[Found]:
    return [(label, box, 0.9 - number / 1000)]


def test_nothing_is_said_of_a_good_detector() -> None:
    assert look(right, labels={"car": 500, "bus": 500}) == []
    one_mistake = look(lambda number, label, box: [(1 - label if number == 7 else label, box, 0.9)])
    assert one_mistake == []


def test_sure_detections_of_nothing_send_to_the_missing_labels() -> None:
    def elsewhere(number: int, label: int, box: list[float]) -> list[Found]:
        return [*right(number, label, box), *([(label, [300, 300, 60, 60], 0.95)] if number < 24 else [])]

    (advice,) = look(elsewhere)
    assert advice["rule"] == "unlabelled" and advice["gain"] > 0.05
    assert advice["reason"].startswith("24 very sure detections (score .8 or more)")
    assert advice["reason"].endswith("there are 60 labels in all.") and "no label here" in advice["do"]

    assert look(lambda *at: [(k, b, s if b[0] == 100 else s - 0.2) for k, b, s in elsewhere(*at)]) == []

    def everywhere(number: int, label: int, box: list[float]) -> list[Found]:
        return [*right(number, label, box), *((label, [300 + 80 * i, 0, 60, 60], 0.95) for i in range(3))]

    assert "unlabelled" not in {one["rule"] for one in look(everywhere)}  # more than labels: a bad detector


def test_objects_taken_for_another_class_name_the_pair() -> None:
    (advice,) = look(lambda number, label, box: [(1 - label if number < 20 else label, box, 0.9)])
    assert advice["rule"] == "confused" and "other label here" in advice["do"]
    assert advice["reason"] == (
        "20 of 60 objects are detected as another class, most often ‘car’ and ‘bus’ for each other (20 times)."
    )


def test_loose_boxes_are_said_to_be_loose() -> None:
    def shifted(number: int, label: int, box: list[float]) -> list[Found]:
        return [(label, [box[0] + (12 if number % 4 else 24), *box[1:]], 0.9 - number / 1000)]

    (advice,) = look(shifted)  # IoU 2/3 of three in four, 3/7 of the others
    assert advice["rule"] == "loose" and "do not fit well (AP75 .000)" in advice["reason"]
    assert look(lambda number, label, box: [(label, [box[0] + 6, *box[1:]], 0.9)]) == []  # IoU .82


def test_a_weak_class_with_few_labels_needs_more_of_them() -> None:
    def no_bus(number: int, label: int, box: list[float]) -> list[Found]:
        return [] if number % 4 == 1 else right(number, label, box)  # half of the buses

    (advice,) = look(no_bus, labels={"car": 500, "bus": 31})
    assert advice["rule"] == "few_labels" and advice["do"] == "Label more of it."
    assert (
        "‘bus’ (31 labels, AP .5" in advice["reason"]
        and "at least 50 labels have AP 1.000 on" in advice["reason"]
    )
    assert advice["gain"] == pytest.approx(0.25, abs=0.02)  # half of the buses, half of the classes
    for labels in ({"car": 500, "bus": 80}, {"car": 20, "bus": 20}, {"car": 20, "bus": 500}, {}):
        assert look(no_bus, labels=labels) == []
    assert look(no_bus, objects=8, labels={"car": 500, "bus": 31}) == []  # four boxes tell nothing


def test_a_score_that_still_rises_asks_for_more_time() -> None:
    course = Course([8, 16, 24], [0.3, 0.42, 0.45], [1.0, 0.9, 0.8], finished=True)
    (advice,) = look(right, course=course, arguments={"epochs": 24})
    assert advice == {
        "rule": "rising",
        "gain": 0.03,
        "reason": "AP was still rising when training ended: by .030 from epoch 16 to epoch 24, the last.",
        "do": "Train longer: `--epochs 48`.",
    }
    for given, more in (
        ({"budget": "20m", "epochs": None}, "--budget 40m"),
        ({"budget": "1.5h", "epochs": 100}, "--budget 3h"),  # the time ended it
        ({"budget": "9h", "epochs": 24}, "--epochs 48"),
    ):
        assert look(right, course=course, arguments=given)[0]["do"] == f"Train longer: `{more}`."
    for not_so in (
        course._replace(finished=False),  # it will go on by itself
        course._replace(AP=[0.3, 0.444, 0.45]),
        course._replace(AP=[0.47, 0.42, 0.45]),
        Course([12, 24], [0.3, 0.45], [1.0, 0.8], finished=True),
        Course([], [], [], finished=True),
    ):
        assert look(right, course=not_so, arguments={"epochs": 24}) == []


def test_a_detector_that_has_learnt_little_is_told_so_first_with_the_likeliest_mend() -> None:
    def hardly(number: int, label: int, box: list[float]) -> list[Found]:
        return [(1 - label, box, 0.95), *([(label, box, 0.9)] if number < 3 else [])]

    few = Course([1, 2, 3], [0.0, 0.006, 0.017], [1.0, 0.9, 0.8], finished=True, steps=120)
    labels = {"car": 30, "bus": 20}
    first, *others = look(hardly, course=few, labels=labels, arguments={"epochs": 3})
    assert (first["rule"], first["gain"]) == ("little", pytest.approx(0.98, abs=0.02))
    assert re.fullmatch(
        r"The detector has learnt little: AP \.0\d\d, AP50 \.0\d\d, after 120 steps, on 50 labels\.",
        first["reason"],
    )
    assert first["do"].startswith(
        "Train longer: `--epochs 40` makes about the 1,600 steps of a run by default. Then"
    )
    assert others and "rising" not in {one["rule"] for one in others}  # it would say again to train longer
    by_time = look(hardly, course=few, arguments={"budget": "2m"})[0]["do"]
    assert by_time == "Train longer: `--budget 27m` makes about the 1,600 steps of a run by default."
    grew = look(hardly, course=few._replace(steps=1600), labels=labels, arguments={"epochs": 3})[0]
    assert grew["do"].startswith(
        "Train longer: `--epochs 6`, as AP was still rising. Then label more pictures"
    )
    many = few._replace(steps=1600, AP=[0.0, 0.016, 0.017])
    assert look(hardly, course=many, labels=labels)[0]["do"].startswith("Label more pictures")
    assert "--size" in look(hardly, course=many, labels={"car": 5000, "bus": 5000})[0]["do"]
    assert look(right, course=few, labels=labels) == []


@pytest.mark.parametrize(
    ("given", "more"),
    [({"budget": "2m", "epochs": None}, "--budget 31m"), ({"epochs": 3}, "--epochs 47")],
)
def test_a_short_run_is_told_to_train_longer_before_anything_of_its_labels(
    given: dict[str, Any], more: str
) -> None:
    def half(number: int, label: int, box: list[float]) -> list[Found]:
        return right(number, label, box) if number % 2 or number < 6 else []

    labels, course = {"car": 20, "bus": 500}, Course([1, 2, 3], [0.3, 0.5, 0.6], [1.0, 0.9, 0.8], True, 104)
    first, *others = look(half, course=course, labels=labels, arguments=given)
    assert (first["rule"], first["gain"]) == ("little", pytest.approx(0.45, abs=0.02))
    assert re.fullmatch(
        r"The training was short: AP \.5\d\d, AP50 \.5\d\d, after 104 steps, on 520 labels\.", first["reason"]
    )
    assert first["do"] == f"Train longer: `{more}` makes about the 1,600 steps of a run by default."
    assert [one["rule"] for one in others] == ["few_labels"]
    for longer in (course._replace(steps=800), course._replace(finished=False)):
        (only, *_) = look(half, course=longer, labels=labels, arguments=given)
        assert only["rule"] == "few_labels"


def test_a_score_that_falls_while_the_loss_falls_is_overfitting() -> None:
    course = Course([2, 4, 6, 8, 10], [0.3, 0.6, 0.58, 0.56, 0.55], [2.0, 1.0, 0.8, 0.6, 0.5], finished=True)
    (advice,) = look(right, course=course)
    assert advice["rule"] == "overfitted" and advice["gain"] == pytest.approx(0.05)
    assert "From epoch 4 to 10 AP fell from .600 to .550" in advice["reason"]
    assert "from 1.00 to 0.50" in advice["reason"]
    assert advice["do"] == "Label more pictures, or vary them more: `--scale 0.6 1.5`."
    varied = {"augment": {"scale": [0.5, 1.5]}}
    assert look(right, course=course, arguments=varied)[0]["do"] == "Label more pictures."
    for not_so in (
        course._replace(loss=[2.0, 1.0, 1.0, 0.98, 0.95]),  # it came to a stop, or went astray
        course._replace(AP=[0.3, 0.6, 0.598, 0.597, 0.596]),
        course._replace(AP=[0.3, 0.4, 0.6, 0.56, 0.55]),
        course._replace(loss=[float("nan")] * 5),
    ):
        assert look(right, course=not_so) == []


def test_what_could_give_most_comes_first_and_five_are_enough() -> None:
    def bad(number: int, label: int, box: list[float]) -> list[Found]:
        if number < 14:
            return [(1 - label, box, 0.9), (label, [300, 300, 60, 60], 0.95)]
        return [(label, [box[0] + (12 if number % 4 else 24), *box[1:]], 0.8), (label, [500, 0, 9, 9], 0.97)]

    course = Course([8, 16, 24], [0.3, 0.42, 0.45], [1.0, 0.9, 0.8], finished=True)
    advice = look(bad, course=course)
    assert len(advice) >= 3
    assert [one["gain"] for one in advice] == sorted((one["gain"] for one in advice), reverse=True)


@pytest.fixture
def tiny(squares: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Pictures of so many times 96 x 72 pixels, each with two objects that are 7 px when the longer side is 96."""

    def make(times: int) -> Path:
        data = shutil.copytree(squares, tmp_path / f"tiny{times}")
        for path in (data / "images").iterdir():
            with Image.open(path) as picture:
                picture.resize((96 * times, 72 * times)).save(path)
        for file in (data / "annotations").iterdir():
            content = json.loads(file.read_text())
            for one in content["images"]:
                one |= {"width": 96 * times, "height": 72 * times}
            for one in content["annotations"]:
                box = [times * value for value in (*one["bbox"][:2], 7, 7)]
                one |= {"bbox": box, "area": box[2] * box[3]}
            # Six objects more a picture, so that ten or more are not seen.
            more = [
                one
                | {
                    "id": 1000 + one["id"] * 10 + i,
                    "bbox": [one["bbox"][0] + 9 * times * i, *one["bbox"][1:]],
                }
                for one in content["annotations"]
                for i in (1, 2, 3)
            ]
            content["annotations"] += more
            file.write_text(json.dumps(content))
        return data

    return make


@pytest.mark.parametrize(("times", "size", "then"), [(4, 224, 16), (2, 192, 14), (1, None, None)])
def test_small_objects_ask_for_a_size_only_where_pictures_have_more_pixels(
    tiny: Callable[[int], Path], tmp_path: Path, times: int, size: int | None, then: int | None
) -> None:
    run = make_detector_run(tmp_path / "run", tiny(times), bias=-20.0)  # at size 96, it sees nothing
    page = write_report([run], say=lambda line: None).read_text()
    found = inspect_run(run, say=pytest.fail).findings
    assert found["unseen"] == {"count": 32, "small": 32, "median": 7.0, "size": 96, "own_size": 96 * times}
    assert [(one["least"], one["boxes"], one["recall"]) for one in found["sizes"]] == [
        (0, 32, 0.0), (8, 0, None), (16, 0, None), (32, 0, None), (96, 0, None)
    ]  # fmt: skip
    if not size:
        assert [one["rule"] for one in found["advice"]] == ["little"]
        return
    little, advice = found["advice"]
    assert little["reason"] == "The detector has learnt little: AP .000, AP50 .000."
    assert advice["rule"] == "small" and advice["gain"] == 1.0
    assert "Of 32 objects that are not seen, 32 are under 16 pixels in training" in advice["reason"]
    assert advice["reason"].endswith(f"from 7 to {then} pixels.")
    assert advice["do"] == f"Train with `--size {size}`, in about {(size / 96) ** 2:.1f} times the time."
    assert f"<code>--size {size}</code>" in page


def test_small_objects_that_are_found_like_the_others_ask_for_nothing() -> None:
    sizes = [
        {"least": 8, "most": 16, "boxes": 80, "recall": 0.7},
        {"least": 16, "most": 32, "boxes": 20, "recall": 0.7},
    ]
    unseen = {"count": 30, "small": 24, "median": 12.0, "size": 384, "own_size": 1000}
    few = {"count": 10, "small": 10, "median": 12.0, "size": 384, "own_size": 1000}
    metrics = {"boxes": 100, "AP": None, "AP50": None, "AP75": None, "per_class": {}}
    errors = [{"kind": kind, "AP50_lost": 0.0} for kind in ("background", "wrong class", "badly located")]
    base = {"metrics": metrics, "errors": errors, "confusion": {"matrix": [[0]]}, "classes": []}
    base |= {"unlabelled": 0}

    def advice(unseen: dict[str, Any], small_recall: float) -> list[Advice]:
        rows = [sizes[0] | {"recall": small_recall}, sizes[1]]
        return advise(base | {"sizes": rows, "unseen": unseen}, {}, ENDED, {})

    assert advice(unseen, 0.7) == [] and advice(few | {"count": 4, "small": 4}, 0.5) == []
    assert advice(unseen | {"small": 15}, 0.5) == []  # not most of them
    assert advice(unseen | {"median": 14.0}, 0.5) == []  # 13 % more is no gain worth its time
    (one,) = advice(unseen, 0.5)
    assert (
        one["gain"] == pytest.approx(0.16) and "--size 512" in one["do"]
    )  # 80 of 100 objects, .2 more of them


def test_how_a_run_went_is_read_from_its_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    course = read_course(run)
    assert course.epochs == [1, 2, 3, 4] and course.AP == [0.1, 0.2, 0.3, 0.4] and not course.finished
    assert course.loss[0] == pytest.approx(np.mean([2 / step for step in range(1, 13)]))
    assert read_course(make_run(tmp_path / "bare", logged=False)) == Course([], [], [], finished=False)
    for last, finished in ((2e-5, True), (1e-3, False)):
        (run / "log.csv").write_text(f"step,epoch,lr,loss\n1,1,0.002,1.0\n2,1,{last},0.5\n")
        assert read_course(run).finished is finished
    assert read_course(run).loss[0] == 0.75 and np.isnan(read_course(run).loss[1])


def test_advice_follows_the_curves_without_another_pass(squares: Path, tmp_path: Path) -> None:
    run = make_detector_run(tmp_path / "run", squares, bias=-20.0)
    assert inspect_run(run, say=lambda line: None).findings["advice"][0]["do"].startswith("Look at batch.jpg")
    (run / "metrics.csv").write_text("epoch,AP,AP50\n1,.1,.2\n2,.2,.3\n3,.3,.4\n")
    (run / "log.csv").write_text("step,epoch,lr,loss\n1,1,0.002,1\n2,2,0.001,1\n3,3,0.00002,1\n")
    for _ in range(2):
        found = inspect_run(run, say=pytest.fail).findings
        (advice,) = found["advice"]
        assert advice["do"].startswith("Train longer: `--epochs 1600` makes about the 1,600 steps")
        assert json.loads((run / "inspection" / "findings.json").read_text()) == found


LARGE = "The likely reason is steps that are too large: train again with a lower `--lr` (it was 20)"
FEW = "The likely reason is too few steps (%s; a run by default has about 1,600): train again with more `--epochs`."
LABELS = "The likely reason is labels that do not fit their pictures"


@pytest.mark.parametrize(
    ("AP", "losses", "steps", "rate", "said"),
    [
        ([0, 0, 0], (2.0, 8.0), 48, 20.0, ["has learnt nothing: AP .000 at", "rose from 2 to 8.", LARGE]),
        ([0, 0, 0.0], (2.0, 1.0), 48, 20.0, ["has learnt nothing: AP .000 at the last validation. ", LARGE]),
        ([0, 0.004], (2.0, 1.9), 48, 0.002, ["has learnt nothing: AP .004 at", FEW % 48]),
        ([0, 0.0], (2.0, 1.9), 799, 0.002, ["has learnt nothing", FEW % 799]),
        (
            [0, 0.0],
            (2.0, 1.9),
            800,
            0.002,
            ["has learnt nothing", LABELS, "`ghmdet data check sets/made-up`"],
        ),
        ([0.3, 0.0], (2.0, 9.0), 300, 20.0, ["lost what it had learnt: AP fell from .300 to .000", LARGE]),
        ([0.2, 0.3], (2.0, 4.1), 300, 20.0, ["This run went wrong: its training loss rose", LARGE]),
        ([0.2, 0.006], (2.0, 3.9), 300, 0.002, []),
        ([], (2.0, 1.9), 48, 0.002, []),
        ([], (2.0, 9.0), 48, 20.0, ["This run went wrong: its training loss rose from 2 to 9."]),
    ],
)
def test_a_run_that_is_no_success_says_so_on_its_page_and_aloud(
    tmp_path: Path, AP: list[float], losses: tuple[float, float], steps: int, rate: float, said: list[str]
) -> None:
    run = make_run(tmp_path / "run", findings=found())
    made = json.loads((run / "run.json").read_text())
    made["arguments"]["lr"] = rate
    (run / "run.json").write_text(json.dumps(made))
    log = [f"{s + 1},1,{losses[0] if s == 0 else 1e9 if s < 20 else losses[1]},1,1" for s in range(steps)]
    (run / "log.csv").write_text("\n".join(["step,epoch,loss,classification,bbox_regression", *log, ""]))
    rows = [f"{e},{e},{e},{score},0" for e, score in enumerate(AP, start=1)]
    (run / "metrics.csv").write_text("\n".join(["step,epoch,seconds,AP,AP50", *rows, ""]))
    lines: list[str] = []
    page = write_report([run], say=lines.append).read_text()
    for words in said:
        assert words in lines[-1]
        assert words.replace("`", "") in re.sub("</?code>", "", page)
    assert lines[-1].startswith(f"{run}: This run " if said else "written: ")
    assert ("<b>This run" in page) is bool(said)
    assert ("What would help most" in page) is (not said)


@pytest.mark.parametrize(
    ("budget", "epochs", "more"),
    [("90s", None, "a larger `--budget`"), ("1.5h", 24, "a larger `--budget`"), ("9h", 2, "more `--epochs`")],
)
def test_a_short_run_is_told_to_have_more_of_what_ended_it(
    tmp_path: Path, budget: str, epochs: int | None, more: str
) -> None:
    run = make_run(tmp_path / "run", findings=found())
    made = json.loads((run / "run.json").read_text())
    made["arguments"] |= {"budget": budget, "epochs": epochs}
    (run / "run.json").write_text(json.dumps(made))
    (run / "log.csv").write_text("step,epoch,loss,classification,bbox_regression\n1,1,2,1,1\n2,2,1,1,1\n")
    (run / "metrics.csv").write_text("step,epoch,seconds,AP,AP50\n2,2,1,0,0\n")
    assert (failure(run) or "").endswith(f"train again with {more}.")


def test_a_first_batch_without_objects_is_no_loss_to_rise_from(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", findings=found())
    log = ["1,1,0.001,0.001,0", "2,1,2.0,1,1", *[f"{step},1,0.5,.3,.2" for step in range(3, 40)]]
    (run / "log.csv").write_text("\n".join(["step,epoch,loss,classification,bbox_regression", *log, ""]))
    (run / "metrics.csv").write_text("step,epoch,seconds,AP,AP50\n39,1,1,0.5,0.8\n")
    assert failure(run) is None


def test_a_run_that_diverged_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", findings=found())
    (run / "diverged.txt").write_text("the loss is not finite at step 7\n")
    assert failure(run) == "This run diverged: the loss is not finite at step 7"
