from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from detector_cases import ARTICLE, TINY, padded, random_boxes
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou, complete_box_iou_loss, generalized_box_iou_loss, sigmoid_focal_loss

from ghmdet.errors import GhmdetError
from ghmdet.models import BOX_LOSSES, CLS_LOSSES, DetectionLoss, LossConfig, RetinaNet
from ghmdet.models import loss as loss_module
from ghmdet.models.anchors import make_anchors
from ghmdet.models.iou import ciou_loss
from ghmdet.models.targets import anchor_targets
from operations import WAITS, Operations, as_an_accelerator

K = 3
ANCHORS, _ = make_anchors(TINY, 96, 128, torch.device("cpu"))


def scene(counts=(4, 0, 2)):
    """Boxes and labels of some pictures, what the anchors should say, and predictions."""
    boxes = [random_boxes(n) for n in counts]
    labels = [torch.randint(0, K, (n,)) for n in counts]
    wanted = anchor_targets(*padded(boxes, labels), ANCHORS, ARTICLE, K)
    logits = torch.randn(len(counts), len(ANCHORS), K, requires_grad=True)
    deltas = (0.3 * torch.randn(len(counts), len(ANCHORS), 4)).requires_grad_()
    return boxes, labels, wanted, logits, deltas


def compute(cls_loss, box_loss, logits, deltas, wanted):
    loss = DetectionLoss(LossConfig(cls_loss, box_loss, cls_weight=1, box_weight=1), K)
    return loss(logits, deltas, wanted.labels, wanted.boxes, ANCHORS)


def reference(boxes, labels, logits, deltas, cls_loss, box_loss):
    """Torchvision's way: one picture after the other, only the anchors that count."""
    matcher, coder = Matcher(0.5, 0.4, allow_low_quality_matches=True), BoxCoder((1.0, 1.0, 1.0, 1.0))
    classification, regression, positives = 0.0, 0.0, 0
    for b, n, x, d in zip(boxes, labels, logits, deltas, strict=True):
        matched = matcher(box_iou(b, ANCHORS)) if len(b) else torch.full((len(ANCHORS),), -1)
        found, counted = matched >= 0, matched != -2
        target = torch.zeros_like(x)
        if len(b):
            target[found, n[matched[found]]] = 1
            positives += int(found.sum())
            gt, at = b[matched[found]], ANCHORS[found]
            if box_loss == "giou":
                regression += generalized_box_iou_loss(coder.decode_single(d[found], at), gt, "sum")
            else:
                regression += F.smooth_l1_loss(
                    d[found], coder.encode_single(gt, at), beta=1 / 9, reduction="sum"
                )
        if cls_loss == "focal":
            classification += sigmoid_focal_loss(x[counted], target[counted], reduction="sum")
        else:
            classification += F.binary_cross_entropy_with_logits(x[counted], target[counted], reduction="sum")
    return {"classification": classification / positives, "bbox_regression": regression / positives}


@pytest.mark.parametrize("box_loss", ["giou", "smooth-l1"])
@pytest.mark.parametrize("cls_loss", ["ce", "focal"])
def test_losses_equal_a_loop_over_pictures(cls_loss, box_loss):
    boxes, labels, wanted, logits, deltas = scene()
    got = compute(cls_loss, box_loss, logits, deltas, wanted)
    expected = reference(boxes, labels, logits, deltas, cls_loss, box_loss)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)
    got_grads = torch.autograd.grad(sum(got.values()), (logits, deltas))
    expected_grads = torch.autograd.grad(sum(expected.values()), (logits, deltas))
    torch.testing.assert_close(got_grads, expected_grads)


def test_ciou_loss_is_torchvisions():
    boxes = random_boxes(60).double().requires_grad_()
    targets = torch.cat([boxes[:20].detach() + 2, random_boxes(40).double()])
    ours, theirs = ciou_loss(boxes, targets), complete_box_iou_loss(boxes, targets)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss.sum(), boxes)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("classes", [K, 1])
@pytest.mark.parametrize("name", ["qfl", "vfl"])
def test_the_target_of_an_object_is_the_iou_of_its_predicted_box(name, classes, waits, monkeypatch):
    *_, wanted, logits, deltas = scene()
    logits, labels = logits[..., :classes], wanted.labels.clamp(max=classes)
    positive = (labels >= 0) & (labels < classes)
    decoded = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas.flatten(0, 1), ANCHORS.repeat(3, 1))
    iou = box_iou(decoded, wanted.boxes.flatten(0, 1)).diagonal().view(labels.shape)
    targets = F.one_hot(labels.clamp(0, classes), classes + 1)[..., :classes] * iou[..., None]
    targets = torch.where((labels >= 0)[..., None], targets.detach(), 0)
    p, entropy = logits.sigmoid(), F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weight = (p - targets) ** 2 if name == "qfl" else torch.where(targets > 0, targets, 0.75 * p**2)
    expected = (weight * entropy)[labels >= 0].sum() / positive.sum()
    if waits:
        as_an_accelerator(monkeypatch)
    loss = DetectionLoss(LossConfig(name, cls_weight=1), classes)
    got = loss(logits, deltas, labels, wanted.boxes, ANCHORS)["classification"]
    torch.testing.assert_close(got, expected)
    assert torch.autograd.grad(got, deltas, allow_unused=True) == (None,)


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_an_anchor_without_a_box_cannot_spoil_the_box_loss(box_loss):
    *_, wanted, logits, deltas = scene()
    free = (wanted.labels < 0) | (wanted.labels == K)
    clean = compute("ce", box_loss, logits, deltas, wanted)["bbox_regression"]
    with torch.no_grad():
        deltas[free] = 1e30
    loss = compute("ce", box_loss, logits, deltas, wanted)["bbox_regression"]
    (gradient,) = torch.autograd.grad(loss, deltas)
    torch.testing.assert_close(loss, clean)
    assert gradient.isfinite().all()
    assert (gradient[free] == 0).all()
    assert (gradient[~free] != 0).any()


@pytest.mark.parametrize("cls_loss", CLS_LOSSES)
def test_ignored_anchors_have_no_class_gradient(cls_loss):
    *_, wanted, logits, deltas = scene()
    loss = compute(cls_loss, "giou", logits, deltas, wanted)["classification"]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (wanted.labels < 0).any()
    assert (gradient[wanted.labels < 0] == 0).all()
    assert (gradient[wanted.labels >= 0] != 0).any()


@pytest.mark.parametrize("cls_loss", CLS_LOSSES)
@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_a_batch_without_boxes_trains(cls_loss, box_loss):
    *_, wanted, logits, deltas = scene((0, 0))
    losses = compute(cls_loss, box_loss, logits, deltas, wanted)
    gradients = torch.autograd.grad(sum(losses.values()), (logits, deltas))
    assert losses["bbox_regression"] == 0
    assert losses["classification"] > 0
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0] != 0).any()


def test_the_average_of_two_ranks_is_one_process_on_the_joined_batch(monkeypatch):
    *_, wanted, logits, deltas = scene((4, 1, 2, 0))
    joined = compute("ce", "giou", logits, deltas, wanted)
    positives = ((wanted.labels >= 0) & (wanted.labels < K)).sum()
    monkeypatch.setattr(loss_module, "sum_over_ranks", lambda _: positives.float())
    monkeypatch.setattr(loss_module, "world_size", lambda: 2)
    ranks = [
        compute("ce", "giou", logits[part], deltas[part], type(wanted)(*(target[part] for target in wanted)))
        for part in (slice(0, 2), slice(2, 4))
    ]
    for name, value in joined.items():
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, value)


@pytest.mark.parametrize("name", ["ce", "ohem", "focal"])
def test_a_loss_for_each_class_is_the_mean_of_each_class_alone(name):
    *_, wanted, logits, deltas = scene((6, 3))
    loss = compute(f"{name}-per-class", "giou", logits, deltas, wanted)["classification"]
    alone = []
    for c in range(K):
        labels = wanted.labels.where(wanted.labels < 0, (wanted.labels != c).long())
        one = DetectionLoss(LossConfig(name, "giou", cls_weight=1, box_weight=1), 1)
        value = one(logits[..., c : c + 1], deltas, labels, wanted.boxes, ANCHORS)
        alone.append(value["classification"])
    torch.testing.assert_close(loss, torch.stack(alone).mean())


@pytest.mark.parametrize(
    ("name", "ratio", "kept"),
    [
        ("ohem", 1, 2 * 13),
        ("ohem", 10, 2 * math.factorial(13) / math.factorial(3)),
        ("ohem", 0, 2),
        ("ohem-per-class", 1, 2 * 13 * 2),
        ("ohem-per-class", 10, 2 * math.factorial(13) / math.factorial(3) * 2**10),
    ],
)
def test_ohem_keeps_as_many_negatives_as_its_ratio_says(name, ratio, kept):
    # Losses of ln 2 .. ln 13 for the background of class 0, of ln 2 for the one positive and all of class 1.
    logits = torch.tensor([1.0, *range(1, 13)]).log()[:, None] * torch.tensor([1.0, 0.0])
    labels = torch.tensor([[0, *[2] * 12]])
    loss = DetectionLoss(LossConfig(name, cls_weight=1, ohem_ratio=ratio), 2)
    got = loss(logits[None], torch.zeros(1, 13, 4), labels, ANCHORS[None, :13], ANCHORS[:13])
    classes = 2 if name.endswith("-per-class") else 1
    assert got["classification"].item() == pytest.approx(math.log(kept) / classes, rel=1e-6)


def test_positives_of_each_class_are_a_moving_average():
    loss = DetectionLoss(LossConfig("ce-per-class", cls_weight=1), K)
    totals = []
    for counts in ((6, 3), (0, 0)):
        *_, wanted, logits, deltas = scene(counts)
        got = loss(logits, deltas, wanted.labels, wanted.boxes, ANCHORS)["classification"]
        totals.append(torch.stack([(wanted.labels == c).sum() for c in range(K)]).float())
    plain = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    plain = (plain * (wanted.labels >= 0)[..., None]).sum((0, 1))
    average = (0.75 * totals[0] + totals[1]) / 1.75
    torch.testing.assert_close(got, (plain / average.clamp(min=1)).mean())


def test_positives_of_each_class_are_counted_beyond_float32():
    loss = DetectionLoss(LossConfig("ce-per-class"), 1)
    many = 2**24 + 2  # adding ones to a float32 ends at 2**24
    assert loss._class_positives(torch.zeros(many, dtype=torch.int64)).tolist() == [many]
    loss.counts.total = loss.counts.total.half()
    assert loss._class_positives(torch.zeros(5000, dtype=torch.int64)).tolist() == [5000]


def test_losses_are_float32_under_autocast():
    *_, wanted, logits, deltas = scene()
    expected = compute("ghm-c", "ghm-r", logits.bfloat16(), deltas.bfloat16(), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        got = compute("ghm-c", "ghm-r", logits.bfloat16(), deltas.bfloat16(), wanted)
    for name, value in expected.items():
        assert got[name].dtype == torch.float32
        assert got[name] == value


def test_a_misspelt_loss_or_a_bad_weight_is_refused_before_any_work():
    with pytest.raises(GhmdetError, match="unknown class loss 'gmh-c': did you mean 'ghm-c'"):
        LossConfig(cls_loss="gmh-c")
    with pytest.raises(GhmdetError, match="unknown box loss 'gious': did you mean 'giou'"):
        LossConfig(box_loss="gious")
    with pytest.raises(GhmdetError, match="--cls-weight -1"):
        LossConfig(cls_weight=-1)
    with pytest.raises(GhmdetError, match="--box-weight nan"):
        LossConfig(box_weight=float("nan"))
    with pytest.raises(GhmdetError, match="--ohem-ratio -1: give a number from 0"):
        LossConfig("ohem", ohem_ratio=-1)
    with pytest.raises(GhmdetError, match=r"--accumulation-steps 2\.5: give a whole number from 1"):
        LossConfig("ce", "giou", accumulation_steps=2.5)


def test_weights_scale_the_losses_and_have_defaults():
    *_, wanted, logits, deltas = scene()
    one = compute("focal", "smooth-l1", logits, deltas, wanted)
    default = DetectionLoss(LossConfig("focal", "smooth-l1"), K)(
        logits, deltas, wanted.labels, wanted.boxes, ANCHORS
    )
    torch.testing.assert_close(default["classification"], CLS_LOSSES["focal"] * one["classification"])
    torch.testing.assert_close(default["bbox_regression"], BOX_LOSSES["smooth-l1"] * one["bbox_regression"])
    nothing = DetectionLoss(LossConfig(cls_weight=0), K)(logits, deltas, wanted.labels, wanted.boxes, ANCHORS)
    assert nothing["classification"] == 0


@pytest.mark.parametrize(
    ("cls_loss", "box_loss"),
    [(name, "giou") for name in CLS_LOSSES] + [("ce", name) for name in BOX_LOSSES if name != "giou"],
)
def test_every_loss_teaches_in_a_few_steps(cls_loss, box_loss, batch):
    # Boxes are judged by smooth L1: GHM-R is normalised by its own density, and its value need not fall.
    images, targets = batch
    model = RetinaNet(
        dataclasses.replace(TINY, prior=0.1), ["bright", "dark"], LossConfig(cls_loss, box_loss)
    ).train()
    trained_by, judge = model.loss, DetectionLoss(LossConfig("ce", "smooth-l1"), 2)

    @torch.no_grad()
    def losses_now():
        own = model(images, targets)
        model.loss = judge
        plain = model(images, targets)
        model.loss = trained_by
        return {"classification": own["classification"], "boxes": plain["bbox_regression"]}

    before = losses_now()
    # The density of the few boxes of two pictures jumps with each that changes its region: GHM-R takes smaller steps.
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4 if box_loss == "ghm-r-published" else 2e-3)
    for _ in range(16):
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()
    after = losses_now()
    for name, value in before.items():
        assert after[name] < 0.85 * value, name


@pytest.mark.parametrize(
    ("cls_loss", "box_loss"), [*zip(CLS_LOSSES, itertools.cycle(BOX_LOSSES)), ("ghm-c", "ghm-r")]
)
def test_assignment_and_losses_are_one_graph(cls_loss, box_loss):
    boxes, labels, wanted, logits, deltas = scene()
    rows = padded(boxes, labels)
    eager, compiled = (DetectionLoss(LossConfig(cls_loss, box_loss), K) for _ in range(2))
    torch.compiler.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def step(boxes, labels, logits, deltas):
        anchor_targets(boxes, labels, ANCHORS, TINY, K)
        wanted = anchor_targets(boxes, labels, ANCHORS, ARTICLE, K)
        return compiled(logits, deltas, wanted.labels, wanted.boxes, ANCHORS)

    for _ in range(2):
        expected = eager(logits, deltas, wanted.labels, wanted.boxes, ANCHORS)
        torch.testing.assert_close(step(*rows, logits, deltas), expected)


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
@pytest.mark.parametrize("cls_loss", CLS_LOSSES)
def test_no_operation_makes_the_caller_of_an_accelerator_wait(cls_loss, box_loss, monkeypatch):
    as_an_accelerator(monkeypatch)
    boxes, labels, _, logits, deltas = scene()
    rows = padded(boxes, labels)
    with Operations() as seen:
        wanted = anchor_targets(*rows, ANCHORS, ARTICLE, K)
        losses = compute(cls_loss, box_loss, logits, deltas, wanted)
        sum(losses.values()).backward()
    assert not seen.names & WAITS
