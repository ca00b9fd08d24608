"""`ghmdet.watch` against counts by hand, and the page that it writes."""

from __future__ import annotations

import copy
import json
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

import ghmdet
from ghmdet.spectrum import SpectrumCounts
from ghmdet.watching import Watch

NAMES = ("ant", "bee", "cat")


def by_hand(examples):
    """[2, K, M] counts and sums of (kind, class, g)."""
    counts, sums = np.zeros((2, 3, 30), int), np.zeros((2, 3, 30))
    for kind, k, g in examples:
        region = min(int(g * 30), 29)
        counts[kind, k, region] += 1
        sums[kind, k, region] += g
    return counts, sums


def assert_counted(spectrum: SpectrumCounts, examples) -> None:
    counts, sums = by_hand(examples)
    assert (spectrum.examples[-1].sum(axis=2) == counts).all()
    np.testing.assert_allclose(spectrum.gradient[-1].sum(axis=2), sums, atol=1e-5)


def sigmoid_batch(*shape: int):
    torch.manual_seed(0)
    logits = torch.randn(shape) * 3
    return logits, torch.randint(-1, 4, shape[:1] + shape[2:])


def sigmoid_examples(logits, labels):
    rows, found = logits.double().movedim(1, -1).reshape(-1, 3), []
    for p, label in zip(rows.sigmoid().tolist(), labels.flatten().tolist(), strict=True):
        found += [(int(label == k), k, abs(p[k] - (label == k))) for k in range(3) if label >= 0]
    return found


@pytest.mark.parametrize("shape", [(70, 3), (2, 3, 5, 7), (0, 3)])
def test_sigmoid_scores_are_counted_as_labels_as_targets_and_as_levels(shape):
    logits, labels = sigmoid_batch(*shape)
    examples = sigmoid_examples(logits, labels)
    one_hot = nn.functional.one_hot(labels.clamp_min(0), 4)[..., :3].movedim(-1, 1)
    calls = {
        "labels": (logits, labels),
        "ignored": (logits, labels.where(labels >= 0, 255)),
        "masked": (logits, labels.clamp_min(0), labels >= 0),
        "targets": (logits, one_hot, labels >= 0),
        "targets, masked one by one": (
            logits,
            one_hot.float(),
            (labels >= 0).unsqueeze(1).expand(logits.shape),
        ),
        "levels": ([logits[:1], logits[1:]], [labels[:1], labels[1:]]),
        "double": (logits.double(), labels),
    }
    for call in calls.values():
        watch = ghmdet.watch(NAMES, ignore_index=255)
        watch(*call)
        assert_counted(watch.end_epoch(), examples)


@pytest.mark.parametrize("background", [None, 0, 1, -1])
def test_softmax_scores_are_counted_with_background_for_what_it_is_taken_for(background):
    torch.manual_seed(0)
    outputs = 3 if background is None else 4
    logits, labels = torch.randn(90, outputs) * 3, torch.randint(-1, outputs, (90,))
    place = None if background is None else background % outputs
    objects = [label for label in range(outputs) if label != place]
    examples = []
    for x, label in zip(logits.double(), labels.tolist(), strict=True):
        if label < 0:
            continue
        g = float(1 - x.softmax(0)[label])
        if label == place:
            examples.append((0, int(x[objects].argmax()), g))
        else:
            examples.append((1, objects.index(label), g))
    for call in (
        (logits, labels),
        (logits.T.reshape(1, outputs, 9, 10), labels.view(1, 9, 10)),
        ([logits[:7], logits[7:]], [labels[:7], labels[7:]]),
        (logits, labels.clamp_min(0), labels >= 0),
    ):
        watch = ghmdet.watch(NAMES, softmax=True, background=background)
        watch(*call)
        assert_counted(watch.end_epoch(), examples)


def test_a_followed_loss_is_counted_in_training_only_and_gives_what_it_gave():
    logits, labels = sigmoid_batch(50, 3)
    watch, loss = ghmdet.watch(NAMES), ghmdet.GHMC()
    expected = copy.deepcopy(loss)(logits, labels)
    handle = watch.follow(loss)
    assert torch.equal(loss(logits, labels), expected)
    pickle.loads(pickle.dumps(copy.deepcopy(loss)))(logits, labels)  # a copy counts for itself
    loss.eval()(logits, labels)
    handle.remove()
    loss.train()(logits, labels)
    assert_counted(watch.end_epoch(), sigmoid_examples(logits, labels))

    valid = torch.arange(50) % 3 == 0
    for way in (
        lambda: loss(logits, labels, valid),
        lambda: loss(logits, labels, valid=valid),
        lambda: loss(valid=valid, targets=labels, inputs=logits),
    ):
        handle = watch.follow(loss)
        way()
        handle.remove()
        assert_counted(watch.end_epoch(), sigmoid_examples(logits[valid], labels[valid]))

    seen, torchs = ghmdet.watch(3, softmax=True), nn.CrossEntropyLoss()
    seen.follow(torchs)
    torchs(logits, labels.clamp(0, 2)).item()
    assert seen.end_epoch().examples.sum() == 50
    assert seen.classes == ("class 0", "class 1", "class 2")


def test_the_page_shows_every_epoch_and_says_what_pulled(tmp_path):
    watch = ghmdet.watch(["ant", "b<e>e", "cat"])
    for scale in (0.0, 4.0):
        labels = sigmoid_batch(50, 3)[1]
        wanted = nn.functional.one_hot(labels.clamp_min(0), 4)[:, :3] * 2 - 1
        watch(wanted * scale, labels)
        if not scale:
            watch.end_epoch()
    page = watch.report(tmp_path / "page.html", name="My model").read_text()
    values = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert values["epochs"] == [1, 2] and values["classes"] == ["all classes", "ant", "b<e>e", "cat"]
    counted = int((labels >= 0).sum()) * 3
    for epoch, region in ((0, 15), (1, 0)):  # all scores are .5, then all are right
        found = np.array(values["counts"][epoch][0])
        assert (10 ** (found.clip(0) / 1000) * (found >= 0)).sum() == pytest.approx(counted, rel=0.01)
        assert (found[:, [r for r in range(30) if r != region]] == -1).all()
    assert "<h1>My model</h1>" in page and "What training saw" in page and "pulled hardest" in page
    for absent in ("validated", "How it was made", "This run", "this run", "checkpoint, on", "logged a step"):
        assert absent not in page
    assert "b<e>e" not in page.replace(re.search(r"<script type.*?</script>", page)[0], "")


def followed_in_eval_mode() -> Watch:
    watch, loss = ghmdet.watch(NAMES), nn.BCEWithLogitsLoss().eval()
    watch.follow(loss)
    loss(torch.zeros(2, 3), torch.zeros(2, 3))
    return watch


def only_ignored() -> Watch:
    watch = ghmdet.watch(NAMES)
    watch(torch.zeros(2, 3), torch.full((2,), -1))
    watch.end_epoch()
    return watch


@pytest.mark.parametrize("made", [lambda: ghmdet.watch(NAMES), followed_in_eval_mode, only_ignored])
def test_a_page_of_nothing_is_refused_and_says_how_to_count(tmp_path, made):
    with pytest.raises(ValueError, match=r"page\.html: no example was counted yet: call watch\("):
        made().report(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_the_scalars_are_those_of_the_last_epoch_that_ended():
    watch = ghmdet.watch(NAMES)
    assert watch.scalars() == {}
    watch(torch.full((4, 3), 9.0), torch.full((4,), 3))
    watch.end_epoch()
    logits, labels = sigmoid_batch(50, 3)
    watch(logits, labels)
    assert watch.scalars()["pull/background"] == 1
    watch.end_epoch()
    examples = sigmoid_examples(logits, labels)
    whole = sum(g for _, _, g in examples)
    for kind, name in enumerate(("background", "objects")):
        own = [g for each, _, g in examples if each == kind]
        assert watch.scalars()[f"pull/{name}"] == pytest.approx(sum(own) / whole)
        assert watch.scalars()[f"g/{name}"] == pytest.approx(sum(own) / len(own))
        hardest = sum(g for g in own if g >= 29 / 30)
        assert watch.scalars()[f"hardest/{name}"] == pytest.approx(hardest / whole)
    for k, name in enumerate(NAMES):
        assert watch.scalars()[f"class/{name}"] == pytest.approx(
            sum(g for _, c, g in examples if c == k) / whole
        )
    assert len(watch.scalars()) == 9 and {type(value) for value in watch.scalars().values()} == {float}


ODD = ["RBC (red), 100%", "a/b", "a:b", "..", "größe", "a_b", "", "it's", "x?"]


def watched_odd() -> Watch:
    watch = ghmdet.watch(ODD)
    watch(torch.zeros(20, len(ODD)), torch.arange(20) % len(ODD))
    watch.end_epoch()
    return watch


def test_any_class_has_a_name_that_loggers_take():
    names = [name.removeprefix("class/") for name in watched_odd().scalars() if name.startswith("class/")]
    assert names == ["RBC _red__ 100_", "a_b", "a_b 2", "_", "größe", "a_b 5", "_ 6", "it_s", "x_"]


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_accelerates_trackers_take_the_scalars(tracker, tmp_path, monkeypatch):
    pytest.importorskip(tracker)
    from accelerate import Accelerator

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    accelerator = Accelerator(log_with=tracker, project_dir=tmp_path)
    accelerator.init_trackers("cells")
    scalars = watched_odd().scalars()
    accelerator.log(scalars, step=3)
    run = accelerator.get_tracker(tracker, unwrap=True)
    if tracker == "wandb":
        accelerator.log({}, step=4)  # the summary is of the steps before the one that may still go on
        seen = {name: run.summary[name] for name in scalars}
    else:
        import mlflow

        seen = mlflow.get_run(run.info.run_id).data.metrics
    accelerator.end_training()
    assert seen == pytest.approx(scalars)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ghmdet.watch([]), "at least one"),
        (lambda: ghmdet.watch(3, background=0), "softmax=True"),
        (lambda: ghmdet.watch(3, softmax=True, background=4), "none of 4 labels"),
        (lambda: ghmdet.watch(3)(torch.zeros(4, 5), torch.zeros(4).long()), r"\(4, 5\), where 3 classes"),
        (lambda: ghmdet.watch(3)([[0.0] * 3], torch.zeros(4).long()), "logits are list"),
        (lambda: ghmdet.watch(3)(torch.zeros(4, 3), torch.full((4,), 7)), "label 7 is outside"),
        (lambda: broken().end_epoch(), "no numbers"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def broken():
    watch = ghmdet.watch(3)
    watch(torch.zeros(2, 3), torch.tensor([0, 3]))
    watch.sums.tables["gradient"].fill_(torch.nan)  # as targets that a GPU does not look at may make it
    return watch


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_examples_without_a_number_are_left_out_and_told(softmax, dense, tmp_path):
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, -100, 1])
    valid = None
    if dense and not softmax:
        labels, valid = torch.eye(3)[labels.clamp(min=0)], torch.rand(6, 3) > 0.3
    bad = logits.clone()
    bad[1, 2] = float("nan")
    watch, sound = ghmdet.watch(3, softmax=softmax), ghmdet.watch(3, softmax=softmax)
    watch(bad, labels, valid)
    # As many scores, of which one example is not asked for: sums of fewer would be rounded otherwise on some machines.
    asked = torch.ones(6, 3, dtype=torch.bool) if valid is None else valid.clone()
    asked[1] = False
    sound(logits, labels, asked[:, 0] if valid is None else asked)
    with pytest.warns(UserWarning, match="1 examples of the epoch are left out: scores that are no numbers"):
        counted = watch.end_epoch()
    assert (counted.examples == sound.end_epoch().examples).all() and counted.examples.any()
    assert (counted.gradient == sound.epochs.gradient[-1:]).all()


@pytest.mark.parametrize("row", [[torch.inf, 0, 0], [torch.inf, torch.inf, 0], [-torch.inf] * 3])
@pytest.mark.parametrize("background", [None, -1])
def test_examples_that_overflowed_in_a_softmax_are_left_out_and_told(row, background):
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, -100, 1])
    bad = logits.clone()
    bad[1] = torch.tensor(row)
    bad[4] = torch.nan  # which is not asked for
    classes = 3 if background is None else 2
    watch, sound = (ghmdet.watch(classes, softmax=True, background=background) for _ in range(2))
    watch(bad, labels)
    kept = torch.tensor([0, 2, 3, 5])
    sound(logits[kept], labels[kept])
    with pytest.warns(UserWarning, match="1 examples of the epoch are left out: scores that are no numbers"):
        counted = watch.end_epoch()
    assert (counted.examples == sound.end_epoch().examples).all() and counted.examples.any()


def test_an_epoch_that_cannot_be_told_is_dropped_and_the_others_are_shown(tmp_path):
    watch = broken()
    with pytest.raises(ValueError, match="no numbers"):
        watch.end_epoch()
    for _ in range(2):
        watch(torch.zeros(2, 3), torch.tensor([0, 3]))
        watch.end_epoch()
    assert len(watch.epochs.pictures) == 2
    for name in ("best.pt", "train.py"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ValueError, match=r"give a file whose name ends in \.html"):
            watch.report(tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"
    assert watch.report(tmp_path / "page.html").exists()
