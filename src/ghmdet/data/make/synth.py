"""A synthetic detection data set whose imbalances are dials: COCO layout, the same bytes for the same dials."""

import json
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from ghmdet.data.make.folder import new_set, write_annotations
from ghmdet.data.make.scene import CLASSES, SynthConfig, draw_scene
from ghmdet.data.make.spoil import KINDS, WRONG, Kind, Labels, box_of, spoil_labels
from ghmdet.files import write_atomic
from ghmdet.words import many

MARKER = "synth.json"
TRAIN, VAL, LABELS = range(3)  # independent random streams: one dial does not stir what another decides


def synthesize(out: Path | str, config: SynthConfig | None = None) -> str:
    """Draw a data set into the folder `out` and say what was drawn, in words.

    It holds images/ and annotations/instances_{train,val}.json in COCO's format. The same config gives the same bytes
    with the same versions of numpy and Pillow. A data set that this function made earlier is replaced once the new one
    is whole. Objects carry the extra key `hard` (0 or 1).

    Raises DataError where `out` is a file, or a folder that holds something else.
    """
    config = config or SynthConfig()
    names, (width, height) = CLASSES[: config.classes], config.size
    val = min(max(1, round(config.images * config.val_share)), config.images - 1) if config.val_share else 0
    train = config.images - val
    said, wrong = [f"{out}: {many(config.images, 'picture')} of {width}x{height} pixels"], Labels()
    with new_set(Path(out), MARKER, "data synth") as folder:
        (folder / "images").mkdir()
        for stream, split, count, first in ((TRAIN, "train", train, 1), (VAL, "val", val, train + 1)):
            images, labels, objects = Labels(), Labels(), Counter[str]()
            for i in range(count):
                picture, things = draw_scene(config, np.random.default_rng((config.seed, stream, i)))
                image = {"id": first + i, "file_name": f"{split}_{i:05d}.jpg"}
                images.append(image | {"width": width, "height": height})
                jpeg = partial(picture.save, format="JPEG", quality=90)
                write_atomic(folder / "images" / f"{image['file_name']}", jpeg)
                for name, (x0, y0, x1, y1), hard in things:
                    label = {"id": len(labels) + 1, "image_id": image["id"]}
                    label["category_id"] = names.index(name) + 1
                    labels.append(
                        label | box_of([x0, y0, x1 - x0, y1 - y0]) | {"iscrowd": 0, "hard": int(hard)}
                    )
                    objects.update([name, "hard"] if hard else [name])
            if not count:
                continue
            counts = ", ".join(f"{name} {objects[name]}" for name in names)
            said.append(f"  {split}: {many(count, 'image')}; {counts} ({objects['hard']} of unusual look)")
            if split == "train":
                random = np.random.default_rng((config.seed, LABELS))
                kinds: tuple[Kind, ...] = KINDS[:3] if config.classes > 1 else KINDS[1:3]
                ids = range(1, config.classes + 1)
                labels, wrong = spoil_labels(labels, images, ids, config.wrong_label_share, kinds, random)
            info = {"description": "synthetic scenes by ghmdet data synth", "config": asdict(config)}
            categories = [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
            content = {"info": info, "images": images, "annotations": labels, "categories": categories}
            write_annotations(folder, split, content)
        made = {"made by": "ghmdet data synth", "config": asdict(config)}
        for file, written in ((MARKER, made), (WRONG, wrong)):
            write_atomic(folder / file, json.dumps(written, indent=1) + "\n")
    if wrong:
        said.append(f"  train: {many(len(wrong), 'label')} made wrong, listed in {WRONG}")
    return "\n".join(said)
