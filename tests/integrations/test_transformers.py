"""Harmonized DETRs of Hugging Face's transformers against losses by hand from the same outputs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from ghmdet.integrations import harmonize, unharmonize

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install ghmdet[detr]"
)

K = 3
SMALL = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
STAGES = {"out_features": ["stage2", "stage3", "stage4"]}
LAYERS = {"d_model": 32, "num_labels": K, "num_queries": 12, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0, "attention_dropout": 0.0}
DETR = ("DeformableDetr", "ConditionalDetr", "DabDetr")
RT = ("RTDetr", "RTDetrV2", "DFine")
every_model = pytest.mark.parametrize("name", DETR + RT)


def made(name: str, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")
    given = LAYERS | HEADS | options
    if name in DETR:
        given |= {"num_feature_levels": 3} if name == "DeformableDetr" else {}
        given |= {"auxiliary_loss": True, "decoder_layers": 3, "encoder_layers": 1, "activation_dropout": 0.0}
        body = transformers.ResNetConfig(**SMALL, **STAGES)
        given |= {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    else:
        given |= {"encoder_hidden_dim": 32, "encoder_in_channels": [32, 48, 64], "decoder_layers": 2}
        given |= {"decoder_in_channels": [32] * 3, "num_denoising": 5, "anchor_image_size": None}
        body = transformers.RTDetrResNetConfig(**SMALL, **STAGES)
    return getattr(transformers, f"{name}ForObjectDetection")(config(backbone_config=body, **given))


def forward(model):
    torch.manual_seed(7)  # the noise of the denoising queries
    labels = [
        {
            "class_labels": torch.tensor([0, 2]),
            "boxes": torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.3]]),
        },
        {"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])},
    ]
    return model(pixel_values=torch.rand(2, 3, 96, 96), labels=labels), labels


def by_hand(model, outputs, labels):
    """Σ L / max(R(g), P) for each class, averaged; which query answers for which box, the library's matcher says."""
    config = model.config
    if hasattr(config, "num_denoising"):
        from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

        matcher = RTDetrHungarianMatcher(config)
    else:
        from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

        matcher = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    logits = outputs["logits"]
    targets = torch.zeros_like(logits)
    for picture, (queries, boxes) in enumerate(matcher(outputs, labels)):
        for query, box in zip(queries, boxes, strict=True):
            targets[picture, query, labels[picture]["class_labels"][box]] = 1
    sums = []
    for c in range(K):
        x, t = logits[..., c].flatten(), targets[..., c].flatten()
        region = ((x.sigmoid() - t).abs() * 30).long().clamp_max(29)
        inside = torch.bincount(region, minlength=30)[region]
        each = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        sums.append((each / inside.clamp_min(max(int(t.sum()), 1))).sum())
    return sum(sums) / K


@every_model
@torch.no_grad()
def test_every_layers_loss_is_the_one_by_hand_and_the_others_stay(name):
    own, model = made(name).eval(), harmonize(made(name), cls_weight=0.5).eval()
    (expected, labels), (found, _) = forward(own), forward(model)
    for key in ("logits", "pred_boxes"):
        assert torch.equal(found[key], expected[key])
    assert found.loss_dict.keys() == expected.loss_dict.keys()
    key = "loss_vfl" if name in RT else "loss_ce"
    layers = [{"logits": expected.logits, "pred_boxes": expected.pred_boxes}, *expected.auxiliary_outputs]
    assert len(layers) == (2 if name == "DFine" else 3)  # which leaves out a layer when it is not trained
    suffixes = ["", *(f"{'_aux' if name in RT else ''}_{i}" for i in range(len(layers) - 1))]
    for layer, suffix in zip(layers, suffixes, strict=True):
        hand = 0.5 * by_hand(own, layer, labels)
        torch.testing.assert_close(found.loss_dict[key + suffix], hand, rtol=1e-5, atol=1e-6)
    for other in expected.loss_dict:
        if not other.startswith(key):
            assert torch.equal(found.loss_dict[other], expected.loss_dict[other]), other
    classes = sum(x for other, x in found.loss_dict.items() if other.startswith(key))
    theirs = sum(x for other, x in expected.loss_dict.items() if other.startswith(key))
    torch.testing.assert_close(found.loss - classes, expected.loss - theirs, rtol=1e-4, atol=1e-4)


@every_model
def test_two_steps_move_every_layers_average_and_no_state_is_lost(name):
    model = harmonize(made(name)).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        loss = forward(model)[0].loss
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    calls = [x.item() for key, x in model.state_dict().items() if key.endswith("calls")]
    assert calls == [2] * (5 if name in RT else 3)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    fresh = harmonize(made(name))
    fresh.load_state_dict(model.state_dict())
    expected = forward(model)[0].loss
    for other in (copied, pickled, fresh.train()):
        assert torch.equal(forward(other)[0].loss, expected)


@every_model
def test_the_way_back(name):
    own, model = made(name), unharmonize(harmonize(made(name), "ghm-c-published"))
    assert model.state_dict().keys() == own.state_dict().keys()
    assert torch.equal(forward(model)[0].loss, forward(own)[0].loss)
    assert type(model) is type(own)
    with pytest.raises(ValueError, match="is not harmonized"):
        unharmonize(model)


def test_what_it_cannot_do_it_says():
    with pytest.raises(ValueError, match="no harmonized box loss"):
        harmonize(made("RTDetr"), box="ghm-r")
    with pytest.raises(ValueError, match="loss function of its own, or is harmonized already"):
        harmonize(harmonize(made("DeformableDetr")))
    plain = transformers.ResNetForImageClassification(transformers.ResNetConfig(**SMALL))
    with pytest.raises(ValueError, match="no model that is known"):
        harmonize(plain)


def test_one_class_alone():
    model = harmonize(made("RTDetr", num_labels=1))
    labels = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])}]
    loss = model(pixel_values=torch.rand(1, 3, 96, 96), labels=labels).loss
    assert loss.isfinite()
    loss.backward()
