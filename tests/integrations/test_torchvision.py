"""Harmonized models of torchvision against losses by hand from the same logits."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.resnet import resnet18
from torchvision.ops import MultiScaleRoIAlign, box_iou

from ghmdet.integrations import Adapter, Choice, harmonize, register_adapter, unharmonize
from ghmdet.integrations import torchvision as adapters

K = 4
SIZE = 96


def backbone(levels: int = 3):
    """A small pyramid of random weights, 32 channels."""
    body = resnet18(weights=None)
    return BackboneWithFPN(
        body, {f"layer{i}": str(i) for i in range(5 - levels, 5)}, [64, 128, 256, 512][-levels:], 32
    )


def retinanet(classes: int = K) -> RetinaNet:
    sizes = tuple((s,) for s in (16, 32, 64, 96))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 4)
    return RetinaNet(backbone(), classes, min_size=SIZE, max_size=SIZE, anchor_generator=anchors)


def fcos() -> FCOS:
    sizes = ((8,), (16,), (32,), (64,))
    return FCOS(
        backbone(), K, min_size=SIZE, max_size=SIZE, anchor_generator=AnchorGenerator(sizes, ((1.0,),) * 4)
    )


def ssd() -> SSD:
    anchors = DefaultBoxGenerator([[2], [2], [2], [2]], min_ratio=20, max_ratio=95)
    head = SSDLiteHead([32] * 4, anchors.num_anchors_per_location(), K, torch.nn.BatchNorm2d)
    return SSD(backbone(), anchors, (SIZE, SIZE), K, head=head)


def rcnn(kind: type[FasterRCNN] = FasterRCNN) -> FasterRCNN:
    anchors = AnchorGenerator(tuple((s,) for s in (16, 32, 64, 96)), ((0.5, 1.0, 2.0),) * 4)
    pool = MultiScaleRoIAlign(["1", "2", "3"], 7, 2)
    return kind(backbone(), K, min_size=SIZE, max_size=SIZE, rpn_anchor_generator=anchors, box_roi_pool=pool)


MODELS = {"RetinaNet": retinanet, "FCOS": fcos, "SSD": ssd, "Faster R-CNN": rcnn}
NAMES = dict.fromkeys(MODELS, ("classification", "bbox_regression")) | {
    "Faster R-CNN": ("loss_objectness", "loss_rpn_box_reg")
}
every_model = pytest.mark.parametrize("name", MODELS)


def made(name: str):
    torch.manual_seed(0)
    return MODELS[name]()


def batch():
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, SIZE, SIZE, generator=generator) for _ in range(3)]
    boxes = [[[8.0, 8, 40, 40], [30, 30, 90, 80]], [], [[4, 50, 30, 90]]]
    labels = [[1, 3], [], [2]]
    targets = [
        {"boxes": torch.tensor(b).reshape(-1, 4), "labels": torch.tensor(c, dtype=torch.int64)}
        for b, c in zip(boxes, labels, strict=True)
    ]
    return images, targets


def forward(model, images, targets):
    torch.manual_seed(7)  # the samplers of Faster R-CNN
    return model(copy.deepcopy(images), copy.deepcopy(targets))


def looked_at(model):
    """By hand: logits [N, K], labels [N] (K or, of a softmax, 0 for background, -1 ignored), offsets, wanted ones."""
    images, targets = model.transform(*copy.deepcopy(batch()))
    features = model.backbone(images.tensors)
    if isinstance(model, FasterRCNN):
        scores, deltas = model.rpn.head(list(features.values()))
        anchors = model.rpn.anchor_generator(images, list(features.values()))
        logits = [torch.cat([s[i].permute(1, 2, 0).reshape(-1) for s in scores]) for i in range(3)]
        offsets = [
            torch.cat([d[i].view(-1, 4, *d.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4) for d in deltas])
            for i in range(3)
        ]
    else:
        outputs = model.head(list(features.values()))
        anchors = model.anchor_generator(images, list(features.values()))
        logits, offsets = list(outputs["cls_logits"]), list(outputs["bbox_regression"])
    labels, predicted, wanted = [], [], []
    for i, target in enumerate(targets):
        label = torch.full((len(anchors[i]),), 1 if isinstance(model, FasterRCNN) else K)
        if isinstance(model, SSD):
            label[:] = 0
        for place, box in enumerate(assigned(model, anchors[i], target, features)):
            if box >= 0:
                label[place] = 0 if isinstance(model, FasterRCNN) else target["labels"][box]
                predicted.append(offsets[i][place])
                wanted.append(encoded(model, target["boxes"][box], anchors[i][place]))
            elif box == -2:
                label[place] = -1
        labels.append(label)
    return torch.cat(logits), torch.cat(labels), torch.stack(predicted), torch.stack(wanted)


def assigned(model, anchors, target, features):
    """The box that each anchor answers for, -1 for none, -2 for ignored."""
    if not len(target["boxes"]):
        return [-1] * len(anchors)
    if isinstance(model, FCOS):
        return fcos_assigned(model, anchors, target["boxes"], features)
    matcher = model.rpn.proposal_matcher if isinstance(model, FasterRCNN) else model.proposal_matcher
    return matcher(box_iou(target["boxes"], anchors)).tolist()


def fcos_assigned(model, anchors, boxes, features):
    """As its article: the centre in the box's inner part, the box's size that of the level, of several the smallest."""
    numbers = [f.shape[-1] * f.shape[-2] for f in features.values()]
    found = []
    for place, anchor in enumerate(anchors.tolist()):
        x, y, size = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2, anchor[2] - anchor[0]
        first, last = place < numbers[0], place >= sum(numbers[:-1])
        best = (-1, 0.0)
        for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
            near = max(abs(x - cx), abs(y - cy)) < model.center_sampling_radius * size
            sides = (x - x0, y - y0, x1 - x, y1 - y)
            fits = (0 if first else 4 * size) < max(sides) < (float("inf") if last else 8 * size)
            area = (x1 - x0) * (y1 - y0)
            if near and min(sides) > 0 and fits and (best[0] < 0 or area < best[1]):
                best = (i, area)
        found.append(best[0])
    return found


def encoded(model, box, anchor):
    (x0, y0, x1, y1), (a0, b0, a1, b1) = box.tolist(), anchor.tolist()
    w, h = a1 - a0, b1 - b0
    x, y = (a0 + a1) / 2, (b0 + b1) / 2
    if isinstance(model, FCOS):
        return torch.tensor([(x - x0) / w, (y - y0) / h, (x1 - x) / w, (y1 - y) / h])
    scale = [10.0, 10.0, 5.0, 5.0] if isinstance(model, SSD) else [1.0] * 4
    move = [((x0 + x1) / 2 - x) / w, ((y0 + y1) / 2 - y) / h]
    move += [torch.tensor((x1 - x0) / w).log(), torch.tensor((y1 - y0) / h).log()]
    return torch.tensor(move) * torch.tensor(scale)


def region_sizes(norm):
    region = (norm * 30).long().clamp_max(29)
    return torch.bincount(region, minlength=30)[region]


def by_hand(model, logits, labels):
    """Σ L / max(R(g), P) for each class, averaged over the classes; of a softmax for each label."""
    if isinstance(model, SSD):
        each = F.cross_entropy(logits, labels, reduction="none")
        norm = 1 - logits.softmax(1).gather(1, labels[:, None])[:, 0]
        sums = []
        for c in range(K):
            own = labels == c
            floor = (labels > 0).sum() if c == 0 else own.sum()
            sums.append((each[own] / region_sizes(norm[own]).clamp_min(max(int(floor), 1))).sum())
        return sum(sums) / K
    if logits.dim() == 1:
        logits = logits[:, None]
    sums = []
    for c in range(logits.shape[1]):
        x, t = logits[labels >= 0, c], (labels[labels >= 0] == c).float()
        each = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        floor = max(int(t.sum()), 1)
        sums.append((each / region_sizes((x.sigmoid() - t).abs()).clamp_min(floor)).sum())
    return sum(sums) / len(sums)


@every_model
def test_the_loss_is_the_one_by_hand_and_the_other_losses_stay(name):
    own, model = made(name), harmonize(made(name), cls_weight=0.5)
    expected = forward(own, *batch())
    losses = forward(model, *batch())
    cls, _ = NAMES[name]
    assert losses.keys() == expected.keys()
    for other in losses.keys() - {cls}:
        assert torch.equal(losses[other], expected[other]), other
    with torch.no_grad():
        logits, labels, _, _ = looked_at(own)
        hand = 0.5 * by_hand(own, logits, labels)
    assert ((labels >= 0) & (labels != (0 if name == "SSD" else K))).sum() >= 3
    torch.testing.assert_close(losses[cls], hand, rtol=1e-5, atol=1e-6)


@every_model
def test_ghm_r_is_the_one_by_hand(name):
    model = harmonize(made(name), cls="ghm-c-joint", box="ghm-r", box_weight=2.0)
    losses = forward(model, *batch())
    with torch.no_grad():
        _, _, predicted, wanted = looked_at(made(name))
        d = (predicted - wanted).flatten()
        root = (d**2 + 0.02**2).sqrt()
        region = (d.abs() / root * 10).long().clamp_max(9)
        inside = torch.bincount(region, minlength=10)[region].float()
        # Σ ASL1 / (M max(R, N / M))
        hand = 2 * ((root - 0.02) / (10 * inside.clamp_min(len(d) / 10))).sum()
    torch.testing.assert_close(losses[NAMES[name][1]], hand, rtol=1e-4, atol=1e-5)


@every_model
def test_two_steps_train_the_head_and_move_the_average_once_a_step(name):
    model = harmonize(made(name), box="ghm-r")
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad()
        total = sum(forward(model, *batch()).values())
        total.backward()
        optimizer.step()
        assert total.isfinite()
    state = model.state_dict()
    calls = [x.item() for key, x in state.items() if key.endswith("calls")]
    assert calls == [2, 2]
    head = "rpn.head" if name == "Faster R-CNN" else "head.classification_head"
    moved = [
        not torch.equal(x, before[key])
        for key, x in state.items()
        if key.startswith(head) and "weight" in key
    ]
    assert moved and all(moved)


@every_model
def test_detections_and_the_way_back_are_bit_identical(name):
    own, model = made(name).eval(), harmonize(made(name), box="ghm-r").eval()
    images, targets = batch()
    with torch.no_grad():
        expected, found = own(images), model(images)
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    back = unharmonize(model).train()
    assert type(back) is type(own) and repr(back) == repr(own)
    assert back.state_dict().keys() == own.state_dict().keys()
    expected, found = forward(own.train(), images, targets), forward(back, images, targets)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@every_model
def test_copies_pickles_and_state_dicts_keep_the_average(name):
    model = harmonize(made(name), box="ghm-r-published")
    forward(model, *batch())
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    fresh = harmonize(made(name), box="ghm-r-published")
    fresh.load_state_dict(model.state_dict())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    expected = forward(model, *batch())
    for other in (copied, pickled, fresh, loaded):
        found = forward(other, *batch())
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    # A copy has a state of its own, and goes its own way back.
    assert copied.state_dict().keys() == model.state_dict().keys()
    unharmonize(copied)
    assert any("ghm_c" in key for key in model.state_dict())


def test_anchors_between_the_thresholds_do_not_count():
    torch.manual_seed(0)
    model, logits = harmonize(retinanet()), torch.randn(1, 6, K)
    anchors = torch.tensor([[0.0, 0, 20, 20]]).expand(6, 4)
    target = {"boxes": anchors[:2] + 3, "labels": torch.tensor([1, 3])}
    outputs = {"cls_logits": logits, "bbox_regression": torch.zeros(1, 6, 4)}
    losses = model.head.compute_loss([target], outputs, [anchors], [torch.tensor([0, -1, -2, -2, -1, 1])])
    hand = by_hand(model, logits[0], torch.tensor([1, K, -1, -1, K, 3]))
    torch.testing.assert_close(losses["classification"], hand)

    rpn, scores = harmonize(rcnn()).rpn, torch.randn(6, 1)
    found, _ = rpn.compute_loss(
        scores, torch.zeros(6, 4), [torch.tensor([1.0, 0, -1, -1, 0, 1])], [torch.zeros(6, 4)]
    )
    torch.testing.assert_close(found, by_hand(rpn, scores, torch.tensor([0, 1, -1, -1, 1, 0])))


def test_one_class_and_pictures_without_boxes_do():
    model = harmonize(retinanet(1), box="ghm-r")
    images, targets = batch()
    for target in targets:
        target["labels"][:] = 0
    losses = forward(model, images, targets)
    assert all(x.isfinite() for x in losses.values()) and losses["classification"] > 0
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in images]
    losses = forward(model, images, nothing)
    assert losses["bbox_regression"] == 0 and losses["classification"].isfinite()
    for name in MODELS:
        losses = forward(harmonize(made(name), box="ghm-r"), images, nothing)
        assert all(x.isfinite() for x in losses.values()), name
        sum(losses.values()).backward()


def test_the_published_form_and_autocast():
    model = harmonize(made("RetinaNet"), "ghm-c-published")
    expected = forward(model, *batch())["classification"]
    with torch.autocast("cpu", torch.bfloat16):
        losses = forward(harmonize(made("RetinaNet"), "ghm-c-published"), *batch())
    assert losses["classification"].dtype == torch.float32
    torch.testing.assert_close(losses["classification"], expected, rtol=0.1, atol=0)


def test_what_cannot_be_harmonized_says_so():
    class Other(torch.nn.Module):
        pass

    class MyHead(adapters.RetinaNetHead):
        pass

    with pytest.raises(
        ValueError, match=r"Other is no model that is known.*register_adapter.*integrations\.md"
    ):
        harmonize(Other())
    with pytest.raises(ValueError, match="did you mean 'ghm-c'"):
        harmonize(retinanet(), "gmh-c")
    with pytest.raises(ValueError, match="unknown box loss"):
        harmonize(retinanet(), box="giou")
    with pytest.raises(ValueError, match="is not harmonized"):
        unharmonize(retinanet())
    model = harmonize(retinanet())
    with pytest.raises(ValueError, match="harmonized already"):
        harmonize(model)
    model = retinanet()
    model.head = MyHead(32, 3, K)
    with pytest.raises(ValueError, match="MyHead, and only RetinaNetHead"):
        harmonize(model)
    mask = harmonize(rcnn(MaskRCNN))  # derived from a known type
    assert type(mask.rpn) is adapters.HarmonizedRPN


def test_an_untested_version_says_what_to_do(monkeypatch):
    monkeypatch.setattr("ghmdet.integrations.adapters.version", lambda name: "9.9.1+cpu")
    with pytest.raises(
        ValueError, match=r"torchvision 9\.9\.1\+cpu was not tested with, only .*any_version=True"
    ):
        harmonize(retinanet())
    assert any("ghm_c" in key for key in harmonize(retinanet(), any_version=True).state_dict())


def test_a_users_adapter_for_a_known_model_counts(monkeypatch):
    monkeypatch.setattr("ghmdet.integrations.adapters._ADAPTERS", {})
    register_adapter(
        RetinaNet, Adapter(lambda model, choice: model.add_module("mine", torch.nn.Identity()), id)
    )
    assert hasattr(harmonize(retinanet()), "mine")
    assert any("ghm_c" in key for key in harmonize(made("FCOS")).state_dict())


def test_a_user_teaches_another_model():
    class Mine(torch.nn.Linear):
        pass

    seen = []
    register_adapter(Mine, Adapter(lambda model, choice: seen.append(choice), lambda model: seen.clear()))
    model = Mine(2, 2)
    assert harmonize(model, "ghm-c-joint", cls_weight=3.0) is model
    assert seen == [Choice("ghm-c-joint", None, 3.0, 1.0)]
    assert unharmonize(model) is model and not seen
