"""The page on which suspicions are looked at one by one: one HTML file, and the crops beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader
from markupsafe import Markup
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from ghmdet.audit.suspicion import Suspicion
from ghmdet.data import DetectionData
from ghmdet.data.images import load_image
from ghmdet.draw import save_jpeg, window_around
from ghmdet.files import write_atomic

SIDE = 420  # pixels of a crop


def write_review(
    out: Path,
    data: DetectionData,
    found: Sequence[Suspicion],
    rows: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
) -> None:
    """Write review.html and crops/ into `out`.

    found, rows: the suspicions, and what audit.json says of each. about: what it says of them all.
    """
    shutil.rmtree(out / "crops", ignore_errors=True)
    items = [dict(row) for row in rows]
    by_picture = sorted(range(len(found)), key=lambda place: found[place].picture)  # each is read once
    for number, places in groupby(by_picture, key=lambda place: found[place].picture):
        record = data.records[number]
        picture = to_pil_image(load_image(record))
        for place in places:
            one, item = found[place], items[place]
            boxes = np.array([label.box for label in (one.given, one.suggested) if label])
            around = [*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)]
            left, top, side = window_around(around, picture.size)
            crop = picture.crop((left, top, left + side, top + side))
            sides = (min(side, SIDE), min(side, SIDE))
            name = f"{item['id']:05}.jpg"
            save_jpeg(crop.resize(sides, Image.Resampling.BICUBIC), out / "crops" / name, 85)
            inside = (record.boxes[:, :2] < (left + side, top + side)).all(axis=1)
            inside &= (record.boxes[:, 2:] > (left, top)).all(axis=1)
            inside[[] if one.row is None else [one.row]] = False
            item["window"], item["around"] = [left, top, side], record.boxes[inside].round(1).tolist()
    page = _templates().get_template("review.html.jinja")
    told = {"audit": about["audit"], "items": items}
    content = Markup(json.dumps(told, separators=(",", ":")).replace("<", "\\u003c"))
    write_atomic(
        out / "review.html",
        page.render(about=about, shown=len(items), json=content).lstrip(),
    )


@cache
def _templates() -> Environment:
    both = ChoiceLoader([PackageLoader("ghmdet", "audit"), PackageLoader("ghmdet", "report")])
    return Environment(
        loader=both, autoescape=lambda name: name == "review.html.jinja", trim_blocks=True, lstrip_blocks=True
    )
