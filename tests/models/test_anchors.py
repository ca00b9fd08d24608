from __future__ import annotations

import dataclasses

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from ghmdet.errors import GhmdetError
from ghmdet.models import PRESETS, ModelConfig
from ghmdet.models.anchors import make_anchors
from ghmdet.models.preprocess import make_batch

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(96, 128), (160, 224), (800, 1344)])
def test_torchvision_rule_equals_its_anchor_generator(size):
    config = PRESETS["r50"]
    generator = AnchorGenerator(
        tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in [32, 64, 128, 256, 512]),
        ((0.5, 1.0, 2.0),) * 5,
    )
    height, width = size
    features = [torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in config.strides]
    expected = generator(ImageList(torch.zeros(1, 3, *size), [size]), features)[0]
    boxes, counts = make_anchors(config, height, width, CPU)
    torch.testing.assert_close(boxes, expected, rtol=0, atol=0)
    assert sum(counts) == len(boxes)
    assert len(counts) == 5


def test_centred_anchors_have_their_size_ratio_and_cell():
    config = PRESETS["nano"]
    boxes, counts = make_anchors(config, 288, 384, CPU)
    first_of_level = torch.cat((torch.zeros(1), torch.tensor(counts).cumsum(0)[:-1])).long()
    for row, stride in zip(first_of_level, config.strides, strict=True):
        cell = boxes[row : row + config.anchors_per_cell]
        size = cell[:, 2:] - cell[:, :2]
        torch.testing.assert_close((cell[:, 2:] + cell[:, :2]) / 2, torch.full_like(size, stride / 2))
        torch.testing.assert_close(
            size.prod(dim=1).sqrt(), 3.0 * stride * torch.tensor([1, 2**0.5]).repeat(3)
        )
        torch.testing.assert_close(
            size[:, 1] / size[:, 0], torch.tensor([0.5, 1.0, 2.0]).repeat_interleave(2)
        )


def test_anchors_made_in_inference_mode_can_train(tiny):
    make_anchors.cache_clear()
    with torch.inference_mode():
        make_anchors(tiny, 96, 128, CPU)
    scale = torch.ones(1, requires_grad=True)
    (make_anchors(tiny, 96, 128, CPU)[0] * scale).sum().backward()
    assert scale.grad is not None


@pytest.mark.parametrize("preset", ["nano", "r50"])
def test_anchors_and_pictures_are_float32_whatever_the_default_dtype(preset):
    config, image = PRESETS[preset], torch.rand(3, 100, 130)
    expected, batch = make_anchors(config, 2400, 3200, CPU)[0], make_batch([image], config, CPU)
    make_anchors.cache_clear()
    torch.set_default_dtype(torch.float16)
    try:
        assert torch.equal(make_anchors(config, 2400, 3200, CPU)[0], expected)
        assert torch.equal(make_batch([image], config, CPU).images, batch.images)
    finally:
        torch.set_default_dtype(torch.float32)
        make_anchors.cache_clear()


def test_anchor_rows_must_fit_the_levels():
    with pytest.raises(GhmdetError, match=r"one row of equal length for each of the 4 levels"):
        dataclasses.replace(PRESETS["nano"], anchor_sizes=((16.0,), (32.0,)))


@pytest.mark.parametrize("preset", PRESETS)
def test_config_comes_back_from_plain_values(preset):
    import json

    config = PRESETS[preset]
    assert ModelConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    older = {name: value for name, value in dataclasses.asdict(config).items() if name != "best_anchors"}
    assert ModelConfig.from_dict(older) == dataclasses.replace(config, best_anchors=0)  # its own thresholds
    with pytest.raises(GhmdetError, match="unknown model field 'chanels'"):
        ModelConfig.from_dict({"chanels": 3})
