"""Formats that are not read: known by how their files begin, so that a refusal can name them and the way to convert."""

import codecs
import os
import re
import shlex
from collections import Counter
from contextlib import suppress
from itertools import islice

from ghmdet.data.tree import Tree

DATUM = "datum convert -i {folder} -f coco -o NEW-FOLDER -- --save-media (pip install datumaro)"
EXPORT = "export it as COCO where it was labelled"
SCRIPT = 'write it as COCO .json (docs/data.md, "Other formats", has a script)'
FILES = 5000  # how many are looked at
TRIED = 3  # of one ending in one folder
HEAD = 4096  # bytes
N = rb"-?\d+(\.\d+)?"
OTHERS = (
    ("KITTI", r"\.txt", rb"\A[A-Za-z]\w*( %b){14,15}\s" % N, DATUM),
    ("DOTA", r"\.txt", rb"\Aimagesource:|\A(%b ){8}[A-Za-z][\w-]* \d\s" % N, SCRIPT),
    ("WIDER FACE", r"\.txt", rb"\A\S+\.jpg\s+\d+\s+(\d+ ){9}", DATUM),
    ("MOT", r"gt\.txt", rb"\A(%b,){6,}" % N, DATUM),
    ("VisDrone", r"\.txt", rb"\A(%b,){7}%b" % (N, N), SCRIPT),
    (
        "a list of pictures with their boxes",
        r"\.txt",
        rb"\A\S+\.\w{3,4}[ ,]%b,%b,%b,%b" % (N, N, N, N),
        SCRIPT,
    ),
    ("CVAT XML", r"\.xml", rb"<annotations>\s*<version>", DATUM),
    ("dlib XML", r"\.xml", rb"<box top=", SCRIPT),
    ("BDD100K", r"\.json", rb'"box2d"', SCRIPT),
    ("Supervisely", r"\.json", rb'"(classTitle|geometryType)"', EXPORT),
    ("VGG Image Annotator", r"\.json", rb'"shape_attributes"', EXPORT),
    ("Label Studio JSON", r"\.json", rb'"(rectanglelabels|completed_by)"', EXPORT),
    ("CreateML", r"\.json", rb'"coordinates"\s*:\s*\{', EXPORT),
    ("Datumaro", r"\.json", rb'"label"\s*:\s*\{\s*"labels"', DATUM),
    ("FiftyOne", r"\.json", rb'"bounding_box"', EXPORT),
    ("VoTT", r"\.(json|vott)", rb'"(assets|videoSettings)"\s*:\s*\{', DATUM),
    ("CrowdHuman", r"\.odgt", b"", SCRIPT),
    ("JSON lines", r"\.jsonl", b"", SCRIPT),
    ("a table of boxes", r"\.csv", rb"(?m)^([^,\n]*,){4}", SCRIPT),
    ("Parquet", r"\.parquet", b"", SCRIPT),
    ("TFRecord", r"\.(tfrecords?|record)|.*\.tfrecord-.*", b"", EXPORT),
    ("an archive", r"\.(zip|tar|tgz|gz|7z|rar)", b"", "unpack it, and give the folder"),
)  # name, how a file's name ends, what its beginning holds, and the way to convert it


def other_format(tree: Tree, of: str = "") -> str:
    """What the files of a folder are that is not read, and the way to convert them, as a line; empty if not known.

    of: an error; it must name the file.
    """
    tried = Counter[tuple[str, str]]()
    found: dict[int, str] = {}
    for path in islice(tree.walk(tree.root), FILES):
        folder, name = os.path.split(path)
        end = os.path.splitext(name)[1].lower()
        known = [at for at, other in enumerate(OTHERS) if re.search(f"({other[1]})$", name, re.IGNORECASE)]
        if known and tried[folder, end] < TRIED:
            head = b""
            with suppress(OSError), open(path, "rb") as file:  # a broken link, or one that may not be read
                head = file.read(HEAD).removeprefix(codecs.BOM_UTF8)
            if head.strip():  # a file without objects tells nothing
                tried[folder, end] += 1
                for at in known:
                    if re.search(OTHERS[at][2], head):
                        found.setdefault(at, os.path.relpath(path, tree.root))
    if not found or (of and found[min(found)] not in of):
        return ""
    format, _, _, way = OTHERS[min(found)]
    where, whole = found[min(found)], shlex.quote(str(tree.given))
    return f"\n{where} looks like {format}, which is not read: {way.format(folder=whole)}"
