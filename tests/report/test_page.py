"""What a report says, without a browser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import epochs, found, large, make_run

from ghmdet.errors import GhmdetError
from ghmdet.report.page import pulls, slider_json, training_words, write_report
from ghmdet.report.reweighting import GUARDED, PLAIN, PUBLISHED, gradient_shares
from ghmdet.report.run_files import read_curves
from ghmdet.spectrum import SpectrumCounts
from spectrum_cases import CLASSES, STRIDES, make_case


class Parsed(HTMLParser):
    """A page's text (of scripts and styles apart), ids, addresses and unclosed elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                self.addresses.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data + " "


def report(*runs: Path, **options: Any) -> Parsed:
    out = runs[0].parent / "report.html"
    assert write_report(runs, out=out, say=lambda line: None, **options) == out
    return Parsed(out.read_text(encoding="utf-8"))


def test_a_report_needs_nothing_else_and_its_parts_do_not_clash(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, training=epochs(3), inspected=epochs(1), findings=found())
        for name in ("a", "b")
    ]
    parsed = report(*runs)
    assert not parsed.open
    assert len(parsed.ids) == len(set(parsed.ids)) > 20
    for address in parsed.addresses:
        assert address.startswith("data:image/") or (address[0] == "#" and address[1:] in parsed.ids)


def test_a_report_says_what_was_found(tmp_path: Path) -> None:
    parsed = report(
        make_run(tmp_path / "run", training=epochs(3), inspected=epochs(1), findings=found(without=["b"]))
    )
    metrics = found()["metrics"]
    for words in (
        f"AP {metrics['AP']:.3f}".replace("0.", "."),
        "A sentence of the inspection.",
        "pulled hardest",
        "b 0 – – – – – –",  # a class without boxes
        "nothing there",
        "9 of 135 shown",
        "with another class",
        "ghmdet train sets/made-up --seed 7",
        "seed 7",
        "python 3.12",
    ):
        assert words in parsed.text
    assert parsed.tags.count("img") == 9
    # Two learning curves, two of the last epoch, the six of the spectrum, precision over recall, calibration.
    assert parsed.tags.count("svg") == 12
    assert "kept no counts" not in parsed.text and "missing" not in parsed.text.replace("missing label", "")


def test_names_that_are_markup_stay_names(tmp_path: Path) -> None:
    names = ["<script>x</script>", "$\\frac$", "a & b"]
    spectrum = make_case().spectrum
    training = SpectrumCounts(
        tuple(names),
        STRIDES,
        *(getattr(spectrum, n) for n in ("pictures", "examples", "gradient", "boxes", "box_gradient")),
    )
    findings = found(names)
    findings["confusion"]["matrix"][0][1] = 50
    findings["errors"][0]["AP50_lost"] = 0.1
    run = make_run(tmp_path / "run", classes=names, training=training, inspected=training, findings=findings)
    parsed = report(run)
    assert not parsed.open
    assert "‘<script>x</script>’ and ‘$\\frac$’ for each other (50 times)" in parsed.text
    assert all(name in parsed.text for name in names)
    assert parsed.tags.count("script") == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"logged": False},
            ["not been validated yet", "not logged a step", "kept no counts", "no best.pt yet"],
        ),
        ({"inspected": epochs(1), "findings": found()}, ["kept no counts", "Where the gradient comes from"]),
        (
            {"training": epochs(1)},
            ["in the one epoch of this run", "pulled hardest", "could not be inspected"],
        ),
        ({"training": epochs(2, absent=(0, 1, 2))}, ["background pulled hardest"]),
        ({"training": SpectrumCounts.empty(CLASSES, STRIDES)}, ["kept no counts"]),
        ({"findings": found(without=CLASSES, hard=0)}, ["there is nothing to look at", "b 0 – –"]),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, options: dict[str, Any], said: list[str]) -> None:
    parsed = report(make_run(tmp_path / "run", **options))
    assert not parsed.open
    for words in said:
        assert words in parsed.text
    for address in parsed.addresses:
        assert address.startswith("data:image/") or address[1:] in parsed.ids


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "log.csv").open("a") as log:
        log.write("49,5,nan,inf,\n50,5")
    with (run / "metrics.csv").open("a") as log:
        log.write("60,5,5,nan,\n70,inf,0.5,0.8,\n")
    damage: list[str] = []
    scores, losses, validated = read_curves(run, damage)
    assert scores["AP"][0] == [1, 2, 3, 4] and scores["AP50"][1][-1] == 0.8 and validated == 5
    assert losses["whole"][1] == pytest.approx([2 / s for s in range(1, 49)])
    assert losses["whole"][0][11] == 1  # the end of the first epoch
    assert damage == [f"{run / 'log.csv'}: 1 damaged row is left out"]


def test_long_logs_are_thinned_to_means(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [f"{s},{(s - 1) // 500 + 1},{s},1,1" for s in range(1, 5002)]
    (run / "log.csv").write_text("\n".join(["step,epoch,loss,classification,bbox_regression", *rows]))
    x, y = read_curves(run, [])[1]["whole"]
    assert len(x) == 400 and y[0] == np.mean(range(1, 14)) and y[-1] > 4990
    assert x == pytest.approx([loss / 500 for loss in y])


def test_who_pulled_is_the_sum_of_each_examples_gradient() -> None:
    case = make_case(0)
    found = pulls(case.spectrum, GUARDED)
    assert list(found) == [1]
    total = sum(one.g for one in case.examples)
    expected = [
        sum(one.g for one in case.examples if one.kind == kind and (one.g >= 0.5) == hard) / total
        for kind in (0, 1)
        for hard in (False, True)
    ]
    assert found[1][PLAIN] == pytest.approx(expected, rel=1e-5)
    guarded = gradient_shares(case.spectrum)[GUARDED]
    assert found[1][GUARDED] == pytest.approx(
        [guarded[kind, part].sum() for kind in (0, 1) for part in (slice(15), slice(15, 30))]
    )


def test_words_name_what_dominated() -> None:
    spectrum = SpectrumCounts.empty(["a"], [8])
    for region, count in ((0, 100_000), (27, 400)):
        spectrum.examples[0, 0, 0, 0, region] = count
        spectrum.gradient[0, 0, 0, 0, region] = count * (0.0012 if region == 0 else 0.91)
    spectrum.examples[0, 1, 0, 0, 3] = 20
    spectrum.gradient[0, 1, 0, 0, 3] = 2.0
    spectrum.boxes[0, 0, 0, 0] = 80
    spectrum.pictures[0] = 5
    said = training_words(spectrum, GUARDED, "ce")
    assert said[0].startswith("In the last epoch, hard background pulled hardest, with 75 % of")
    assert (
        "In the last epoch the hardest 0.42 % of the examples had 75 % of cross entropy's gradient" in said[1]
    )
    assert "Harmonizing would raise the objects' share of the gradient from 0.41 % to" in said[2]
    spectrum.gradient[0, 0] = 0  # so that the objects have all of it, harmonized or not
    said = training_words(spectrum, GUARDED, "ce")
    assert "Harmonizing would leave the objects' share of the gradient at 100 %" in said[-1]


def test_the_sliders_numbers_are_the_counts() -> None:
    spectrum = epochs(3)
    shown = json.loads(slider_json(spectrum, GUARDED))
    assert shown["epochs"] == [1, 2, 3] and shown["classes"] == ["all classes", *CLASSES]
    counts = spectrum.examples.sum(axis=3).transpose(0, 2, 1, 3)  # [E, K, 2, M]
    logs = np.array(shown["counts"])
    drawn = np.where(logs < 0, 0, 10 ** (logs / 1000))
    assert np.allclose(drawn[:, 1:], counts, rtol=0.002)
    assert np.allclose(drawn[:, 0], counts.sum(axis=1), rtol=0.002)
    for epoch in range(3):
        shares = gradient_shares(spectrum[epoch : epoch + 1])
        for key, name in (("before", "cross entropy"), ("after", GUARDED)):
            assert np.allclose(np.array(shown[key])[epoch, 0] / 1000, shares[name], atol=5.1e-4)
            own = np.array(shown["objects"])[epoch, 0, int(key == "after")]  # no sum of what is rounded
            assert np.isclose(own / 100, shares[name][1].sum(), atol=1e-6)
    assert np.allclose(np.array(shown["share"])[:, 1:].sum(axis=1), 100, atol=1)


def test_a_resumed_runs_empty_epochs_are_not_shown() -> None:
    spectrum = epochs(3)
    for name in ("pictures", "examples", "gradient", "boxes", "box_gradient"):
        getattr(spectrum, name)[0] = 0
    assert json.loads(slider_json(spectrum, GUARDED))["epochs"] == [2, 3]
    assert list(pulls(spectrum, GUARDED)) == [2, 3]


def test_a_long_training_on_many_pictures_stays_below_five_megabytes(tmp_path: Path) -> None:
    spectrum = large(epochs=100, classes=80, pictures=100_000)
    report(make_run(tmp_path / "run", training=spectrum, inspected=spectrum[-1:], findings=found(hard=0)))
    assert 1e6 < (tmp_path / "report.html").stat().st_size < 5e6


def test_many_classes_are_cut_to_those_with_most_and_least(tmp_path: Path) -> None:
    shown = json.loads(slider_json(large(epochs=1, classes=100, pictures=10), PUBLISHED))
    assert len(shown["classes"]) == 81
    names = [f"c{k}" for k in range(30)]
    parsed = report(make_run(tmp_path / "run", classes=names, findings=found(names, without=names[:1])))
    assert "The commonest confusions" in parsed.text and "nothing there → c0: 1" in parsed.text


def test_several_runs_are_told_apart_and_put_side_by_side(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / loss / "seed0", class_loss=loss, findings=found(hard=3))
        for loss in ("ce", "focal")
    ]
    parsed = report(*runs, runs[0])
    assert "2 runs" in parsed.text and "Run Class loss AP" in parsed.text
    assert "Class ce/seed0 focal/seed0" in parsed.text


def test_what_is_no_run_is_named_before_any_work(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(GhmdetError, match=r"nothing: not a run \(there is no such folder\)"):
        write_report([run, tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(GhmdetError, match=r"empty: not a run \(it has no run.json\)"):
        write_report([tmp_path / "empty"])
    (run / "run.json").write_text("{")
    with pytest.raises(GhmdetError, match=r"run.json: invalid JSON"):
        write_report([run])
    with pytest.raises(GhmdetError, match="no run is given"):
        write_report([])
    assert not list(tmp_path.rglob("report.html"))


def test_two_measurements_of_one_checkpoint_are_told_apart(tmp_path: Path) -> None:
    def headline(name: str, AP: float, **other: str) -> str:
        findings = found() | other
        findings["metrics"] = findings["metrics"] | {"AP": AP}
        text = report(make_run(tmp_path / name / "run", findings=findings)).text
        return text.partition("The best checkpoint, on ")[2].partition("Score")[0]

    AP = found()["metrics"]["AP"]
    assert "again" not in headline("same", AP + 0.0001)
    assert (
        f"measured again, in float32, one picture at a time, on the labels of now; AP is {AP - 0.01:.3f}".replace(
            "0.", "."
        )
        in headline("near", AP - 0.01)
    )
    assert "again" not in headline("other", AP - 0.01, data="sets/other")  # whose AP is another figure
