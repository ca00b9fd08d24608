"""`ghmdet audit apply`: a copy of a data set with the accepted decisions, in its own format."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ghmdet.audit.sheets import SHEETS, Corners, Seen, Sheet
from ghmdet.audit.suspicion import meets
from ghmdet.data.collector import MENDS, judge_box
from ghmdet.data.images import require_apart
from ghmdet.data.make.folder import new_set
from ghmdet.data.read import FORMATS, DataSet
from ghmdet.data.records import NAMED_PROBLEMS, Record
from ghmdet.data.tree import ending, readable
from ghmdet.engine.run_folder import read_json
from ghmdet.errors import DataError, GhmdetError
from ghmdet.files import errors_name, write_atomic
from ghmdet.pictures import EXTENSIONS

MARKER = "mended.json"
"""What was changed in a copy, and which decisions were refused."""
SAME = 0.1  # pixels: how far the corners of one box may differ, being rounded


def mend(audit: Path, out: Path, decisions: Path, say: Callable[[str], None] = print) -> int:
    """Write a copy of the audited data set into `out` with the accepted decisions; 1 where one was refused, else 0.

    The copy holds what the data set's splits use, and mended.json, a row for each change. Pictures are linked, or
    copied where the disk cannot link. Raises GhmdetError for an audit or decisions that are not there or do not belong
    together, a data set of a format that is not written, or an `out` that holds something else; the copy is then not
    made.
    """
    told, given = (read_json(file) for file in (audit / "audit.json", decisions))
    if told is None:
        raise GhmdetError(f"{audit}: no audit.json: give the folder of an audit that has ended")
    accepted = _accepted(given, told, decisions, audit / "review.html")
    data, split = Path(told["data"]), told["split"]
    if not data.exists():
        raise DataError(f"{data}: the data set of this audit is not there: put it back")
    source = DataSet(data)
    if source.format not in SHEETS:
        raise DataError(
            f"{data}: {source.format} is not written: convert it to COCO, VOC or YOLO, and audit that"
        )
    home = Path(source.tree.root).absolute()
    home = home.parent if not source.tree.whole and home.name.lower() == "annotations" else home
    if out.resolve().is_relative_to(home.resolve()) or home.resolve().is_relative_to(out.resolve()):
        raise DataError(f"{out}: lies inside the data set, or around it: give a folder outside {home}")
    name = source.find(split)
    part = source.read(name, told["classes"])
    sheet = SHEETS[source.format](source, name)
    written = sheet.written()
    for record in part.records:
        there = Path(os.path.normpath(record.path.absolute()))  # links keep their names
        if there.is_relative_to(home) or Path(written.get(record.image_id, "")).is_absolute():
            continue
        if there.exists():  # a relative path means another place in the copy
            raise DataError(f"{there}: lies outside the data set {home}: name it by an absolute path there")
    pictures = {part.records.name(i): i for i in range(len(part.records))}
    why = {item["id"]: "its picture is gone" for item in accepted if item["picture"] not in pictures}
    of = dict[str, list[dict[str, Any]]]()
    for item in accepted:
        of.setdefault(item["picture"], []).append(item)
    for picture in of.keys() & pictures.keys():
        why |= _change(sheet, part.records[pictures[picture]], of[picture])
    done = [item for item in accepted if item["id"] not in why]
    refused = [item | {"why": why[item["id"]]} for item in accepted if item["id"] in why]
    counts: Counter[str] = Counter(part.boxes_per_class())
    counts.update(item["new_class"] for item in done if item["new_class"])
    counts.subtract(item["class"] for item in done if item["class"])
    texts = {file.absolute(): text for file, text in sheet.files().items()}
    if elsewhere := next((file for file in texts if not file.is_relative_to(home)), None):
        raise DataError(f"{elsewhere}: lies outside the data set {home}: audit the folder that holds both")
    used = _used(source, sheet, home)
    if closed := next((file for file in sorted(used) if not readable(home / file)), None):
        raise DataError(f"{home / closed}: cannot be copied: mend its link or its permissions, or remove it")
    require_apart(out, part)
    with new_set(out, MARKER, "audit apply") as folder:
        for file in used:
            _link(home / file, folder / file)
        for file, text in texts.items():
            write_atomic(folder / file.relative_to(home), text)
        log = {"made by": "ghmdet audit apply", "data": str(data), "audit": told["audit"]}
        write_atomic(folder / MARKER, json.dumps(log | {"done": done, "refused": refused}, indent=1) + "\n")
        mended = DataSet(folder if source.tree.whole else folder / os.path.relpath(data.absolute(), home))
        try:
            found = mended.read(mended.find(split)).boxes_per_class()  # with its own classes, as for training
        except DataError as error:
            said = str(error).replace(str(folder), str(home))
            raise DataError(f"{data}: its copy could not be read: {said}") from None
        reads = {name: found.get(name, 0) for name in told["classes"]}
        for file in map(Path, mended.tree.used):
            if ending(str(file)) not in EXTENSIONS and not file.absolute().is_relative_to(folder.absolute()):
                raise DataError(f"{data}: its copy would still read {file}: name it by a relative path there")
        if {k: v for k, v in reads.items() if v} != {k: v for k, v in counts.items() if v}:
            polygons = "if its rows are polygons, write 'task: segment' into its data.yaml, beside the names"
            advice = polygons if source.format == "YOLO" else "is its label format mixed?"
            raise DataError(f"{data}: the copy reads as {reads}, not as {dict(counts)}: {advice}")
    for item in refused:
        say(f"refused: number {item['id']} ({item['kind']} in {item['picture']}): {item['why']}")
    if left := sorted(_below(home) - used):
        named = ", ".join(map(str, left[:NAMED_PROBLEMS])) + (", ..." if len(left) > NAMED_PROBLEMS else "")
        say(f"not copied: {len(left)} files that no split of the data set uses ({named})")
    say(f"{out}: {len(done)} decisions applied, {len(refused)} refused, listed in {out / MARKER}")
    for line in told.get("warnings", ()):
        say(f"Warning: the audit that this rests on said: {line}")
    return int(bool(refused))


def _accepted(
    given: dict[str, Any] | None, told: dict[str, Any], file: Path, page: Path
) -> list[dict[str, Any]]:
    """The items that were accepted; raises GhmdetError for what are no decisions of this audit."""
    if given is None:
        raise GhmdetError(f"{file}: no such file: export it from {page}, or give --decisions")
    if "audit" not in given:
        raise GhmdetError(
            f'{file}: has no key \'audit\': write "audit": "{told["audit"]}" where its decisions are of {page}'
        )
    if given["audit"] != told["audit"]:
        raise GhmdetError(f"{file}: decisions of another audit: export them from {page}")
    of = {item["id"]: item for item in told["items"]}
    chosen, decided = [], set[int]()
    if not isinstance(given.get("decisions"), list):
        raise GhmdetError(f"{file}: holds no list of decisions: export the file again")
    for one in given["decisions"]:
        if (
            not isinstance(one, dict)
            or type(one.get("id")) is not int
            or one["id"] not in of
            or one.get("decision") not in ("accept", "reject")
        ):
            raise GhmdetError(f"{file}: no decision: {json.dumps(one)}: export the file again")
        if one["id"] in decided:
            raise GhmdetError(f"{file}: number {one['id']} is decided twice: leave one of the two")
        decided.add(one["id"])
        if one["decision"] == "accept":
            chosen.append(of[one["id"]])
    return chosen


def _change(sheet: Sheet, picture: Record, items: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Apply items to the rows of their picture; of each that cannot be, by its number, why.

    All labels are found before any is changed. No label is brought to an object that has one of its class, nor to one
    that another item has brought one to.
    """
    why, found = dict[int, str](), dict[int, Any]()
    left = [
        (row, (look[0], kept))
        for row in sheet.rows(picture)
        if (look := sheet.look(row, picture))
        and (kept := judge_box(look[1], picture.width, picture.height)[1])  # what readers reject is no label
    ]
    for item in items:
        box = _new_box(item, picture)
        if isinstance(box, str):
            why[item["id"]] = box
        elif said := sheet.refuses(
            item["new_class"], box if item["kind"] in ("missing", "shifted") else None
        ):
            why[item["id"]] = said
        elif item["kind"] != "missing":
            own = next((one for one in left if _is(one[1], item)), None)
            label = [item[key] for key in ("label", "class", "box")]
            same = (
                one["id"]
                for one in items
                if one["id"] in found and [one[key] for key in ("label", "class", "box")] == label
            )
            if twin := next(same, None):
                why[item["id"]] = f"number {twin} was accepted for the same label: reject one of the two"
            elif own is not None:
                left.remove(own)
                found[item["id"]] = own[0]
            else:
                why[item["id"]] = f"no {item['class']} at {item['box']} any more"
    put = list[tuple[dict[str, Any], Corners]]()
    for item in (each for each in items if each["id"] not in why):
        number, kind, label, box = item["id"], item["kind"], item["new_class"], _new_box(item, picture)
        if box is None or isinstance(box, str):
            sheet.remove(found[number], picture)
            continue
        others = (one for one, corners in put if meets(box, [corners]))
        there = (one for one in others if one["new_class"] == label or "class" not in (kind, one["kind"]))
        if meets(box, [corners for _, (name, corners) in left if name == label]):
            why[number] = f"an object of class {label} is labelled there already"
            why[number] += ": remove one of the two by hand" if kind != "missing" else ""
        elif other := next(there, None):
            why[number] = f"number {other['id']} was accepted for the same object: reject one of the two"
        if number in why:
            left += [(found[number], (item["class"], _corners(item["box"])))] if number in found else []
            continue
        put.append((item, box))
        if kind == "missing":
            sheet.add(picture, label, box)
        else:
            moved = kind == "shifted"
            sheet.put(found[number], picture, None if moved else label, box if moved else None)
    return why


def _new_box(item: dict[str, Any], picture: Record) -> Corners | str | None:
    """The corners of an item's suggestion, inside the picture; why there are none, or None where it suggests none."""
    if item["new_box"] is None:
        return None
    flaw, box = judge_box(_corners(item["new_box"]), picture.width, picture.height)
    return box or f"its suggestion {item['new_box']} is no box of the picture ({flaw}): {MENDS[str(flaw)]}"


def _is(seen: Seen, item: dict[str, Any]) -> bool:
    """Whether a row is the label of an item."""
    name, kept = seen
    return bool(name == item["class"] and max(np.abs(np.subtract(kept, _corners(item["box"])))) <= SAME)


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    return box[0], box[1], round(box[0] + box[2], 2), round(box[1] + box[3], 2)


def _used(source: DataSet, sheet: Sheet, home: Path) -> set[Path]:
    """The files that the splits of a data set use and that lie in its folder, relative to that."""
    reader = FORMATS[source.format]
    there = filter(source.is_there, source.splits)
    files = (file for split in there for file in reader.files(source.tree, split, source.splits[split]))
    absolute = (Path(os.path.normpath(Path(file).absolute())) for file in (*files, *sheet.lists()))
    return {file.relative_to(home) for file in absolute if file.is_relative_to(home)}


def _below(home: Path) -> set[Path]:
    """All files of a folder that are not hidden, relative to it."""
    found = set()
    for folder, folders, names in os.walk(home):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found |= {Path(folder).relative_to(home) / name for name in names if not name.startswith(".")}
    return found


def _link(source: Path, target: Path) -> None:
    """A picture is linked where the disk allows it; anything else is copied, so that the copy can be edited."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if ending(str(source)) in EXTENSIONS:
        with suppress(OSError):
            os.link(os.path.realpath(source), target)
            return
    with errors_name(target):
        shutil.copy2(source, target)
