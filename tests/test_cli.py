from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ghmdet import commands
from ghmdet.cli import app, main
from ghmdet.engine.train import Trainer
from ghmdet.errors import unknown_name
from measured_data import shared_data
from small_sets import three_pictures, write_yolo


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "x", "--out", "y", "--cls-loss", "gmh-c"], "did you mean 'ghm-c'?"),
        (["train", "x", "--out", "y", "--cls-los", "ce"], "did you mean --cls-loss?"),
        (["predict", "x", "y"], "--out is missing: give it (Folder to write), or look at --help"),
        (
            ["export", "x"],
            "--out is missing: give it (File to write: .onnx, or .pt2 for `torch`), or look at --help",
        ),
        (["val"], "CHECKPOINT is missing: give it (A training run's folder"),
        (["trian", "x"], "unknown command 'trian': did you mean 'train'?"),
        (["val", "x", "y", "--say", "z"], "unknown option --say: --help lists all"),
        (["train", "x", "--imgsz=320"], "unknown option --imgsz: did you mean --size? --help lists all"),
        (["demo", "--out", "x", "--budget", "2m"], "unknown option --budget: --help lists all"),
        (["predict", "x", "y", "--treshold", ".5"], "unknown option --treshold: did you mean --threshold?"),
        (["data", "chek", "x"], "unknown command 'chek': did you mean 'check'?"),
        (["train", "x", "--out", "y", "--precision", "bf61"], "did you mean 'bf16'?"),
        (["train", "x", "--out", "y", "--epochs", "many"], "--epochs"),
        (["train", "x", "--out", "y", "--epochs", "0"], "from 1 to"),
        (["compare", "x"], "--out"),
        (["train", "no/such/set", "--out", "y"], "no/such/set"),
        (["val", "no.pt", "x"], "no.pt"),
        (["val", "no.pt", "x", "--device", "tpu"], "unknown device 'tpu'"),
        (["report", "x", "--device", "tpu"], "unknown device 'tpu'"),
        (["train", "x", "--out", "y", "--device", "tpu"], "unknown device 'tpu'"),
        (["spectrum", "no.pt", "x", "--out", "y", "--device", "tpu"], "unknown device 'tpu'"),
        (["compare", "x", "--out", "y", "--device", "tpu"], "unknown device 'tpu'"),
        (["compare", "x", "--out", "y", "--precision", "bf61"], "did you mean 'bf16'?"),
        (["predict", "no.pt", "x", "--out", "y", "--batch-size", "0"], "from 1 to"),
        (["train", "x", "--out", "y", "--seed", "-1"], "--seed -1"),
        (["predict", "no.pt", "no.jpg", "--out", "y"], "no.jpg"),
        (["score", "no.json", "no.json"], "no.json"),
        (["train", "no/such/set", "--size", "5000000000"], "--size 5000000000: give"),
        (["data", "synth", "x", "--classes", "99"], "classes"),
        (["data", "synth", "x", "--images", "2.7"], '--images: unable to convert "2.7" into int'),
        (["data", "synth", "x", "--size", "96", "72.5"], '--size: unable to convert "72.5" into int'),
        (["train", "x", "--out", "y", "--epochs", "0.6"], '--epochs: unable to convert "0.6" into int'),
        (["val", "x", "y", "--workers", "1."], '--workers: unable to convert "1." into int'),
        (["compare", "x", "--out", "y", "--seeds", "2.5"], '--seeds: unable to convert "2.5" into int'),
    ],
)
def test_a_mistake_is_one_line_with_its_mend(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("ghmdet: ")
    assert error.count("\n") == 1
    assert said in error
    assert not list(tmp_path.iterdir())


def test_a_name_unlike_any_known_one_gets_the_list_without_a_guess() -> None:
    assert str(unknown_name("model", "zzz", ["nano"])) == "unknown model 'zzz': known: nano"


HEAVY = ("torchvision", "timm", "accelerate", "matplotlib", "PIL", "hotcoco", "cyclopts", "rich")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import ghmdet", ("torch", "numpy", *HEAVY)),
        ("from ghmdet import GHMC, GHMR, GradientSpectrum, functional", HEAVY),
        ("import ghmdet; ghmdet.functional.ghm_c_loss", HEAVY),
        ("import ghmdet.runtime", ("torch", "onnxruntime", *(name for name in HEAVY if name != "PIL"))),
        ("from ghmdet.cli import main; main(['--version'])", ("torch", "numpy", *HEAVY[:-2])),
        ("from ghmdet.cli import main; main(['--help'])", ("torch", "numpy", *HEAVY[:-2])),
        ("from ghmdet.cli import main; main(['data', '--help'])", ("torch", "numpy", *HEAVY[:-2])),
        ("from ghmdet.cli import main; main(['trian'])", ("torch", "numpy", *HEAVY[:-2])),
    ],
)
def test_what_needs_no_heavy_package_imports_none(code: str, absent: tuple[str, ...]) -> None:
    program = f"import atexit, sys\natexit.register(lambda: print(sorted(set({absent}) & set(sys.modules))))\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_every_public_name_is_listed_before_its_first_use() -> None:
    code = "import ghmdet, sys; print(*(set(ghmdet.__all__) - set(dir(ghmdet))), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "words", [["predict", "best.pt", "a.jpg", "--out=x"], ["train", "x"], ["val", "best.pt", "x"]]
)
def test_without_pytorch_what_needs_it_says_so_in_a_line(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    code = f"import sys; sys.modules['torch'] = None\nfrom ghmdet.cli import main; main({words})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "ghmdet: this needs torch, which is not installed: pip install ghmdet brings it\n"


def test_each_command_is_explained_by_the_docstring_of_its_function_each_option_too() -> None:
    commands = [
        command
        for each in (app, app["data"], app["audit"])
        for name, command in each.resolved_commands().items()
        if command.default_command and not name.startswith("-")
    ]
    assert len(commands) == 17
    for command in commands:
        assert inspect.cleandoc(command.help) == inspect.getdoc(command.default_command)
        arguments = command.assemble_argument_collection(parse_docstring=True).filter_by(show=True)
        assert arguments or command.name == ("doctor",)
        assert not [each.name for each in arguments if not each.parameter.help], command.name


def test_score_command_writes_the_published_figures(tmp_path: Path) -> None:
    data = shared_data("coco_eval")
    arguments = ["instances_val2014_100_boxes.json", "instances_val2014_fakebbox100_results.json"]
    assert status("score", *(str(data / name) for name in arguments), "--json", str(tmp_path / "m.json")) == 0
    figures = json.loads((tmp_path / "m.json").read_text())
    expected = json.loads((data / "expected_pycocotools_2.0.11.json").read_text())
    for name, value in zip(expected["names"], expected["stats"], strict=True):
        assert figures[name] == pytest.approx(value, abs=1e-6)


def test_a_file_for_a_folder_and_a_folder_for_a_file_are_named(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    truth = squares / "annotations" / "instances_val.json"
    results = tmp_path / "results.json"
    results.write_text("[]")
    assert status("val", str(run / "best.pt"), str(squares), "--out", str(tmp_path / "file")) == 2
    assert capsys.readouterr().err == f"ghmdet: {tmp_path / 'file'}: is a file: give a folder\n"
    assert status("score", str(truth), str(results), "--json", str(tmp_path)) == 2
    assert capsys.readouterr().err == f"ghmdet: {tmp_path}: is a folder: name a file\n"


def test_a_reader_that_goes_away_ends_a_command_in_silence(squares: Path) -> None:
    """As `head` does."""
    words = [sys.executable, "-m", "ghmdet", "data", "check", str(squares)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0


def test_data_check_fails_on_errors_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("data", "synth", str(tmp_path / "set"), "--images", "4", "--size", "96", "72") == 0
    assert status("data", "check", str(tmp_path / "set")) == 0
    next((tmp_path / "set" / "images").glob("*.jpg")).write_bytes(b"cut")
    assert status("data", "check", str(tmp_path / "set")) == 1
    assert "unreadable" in capsys.readouterr().out


def test_train_ends_with_a_report_unless_told_not_to_and_says_once_that_a_run_learnt_nothing(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--size=96", "--batch-size=4", "--device=cpu", "--precision=fp32", "--weights=none"]
    good = ["--lr=0.001", "--ema=.9", "--epochs=12", "--val-every=12"]  # as `TINY`, and long enough to learn
    bad = ["--cls-loss=ce", "--lr=20", "--epochs=2"]
    for name, more in (("good", good), ("bad", bad), ("silent", [*bad, "--no-report"])):
        failed = name != "good"
        assert status("train", str(squares), f"--out={tmp_path / name}", *words, *more) == (name == "bad")
        assert (tmp_path / name / "report.html").exists() == (name != "silent")
        lines = capsys.readouterr().out.splitlines()
        assert sum("learnt nothing" in line for line in lines) == failed
        assert (f"{tmp_path / name}: This run has learnt nothing: AP .000" in lines[-1]) == failed
        assert ("a lower `--lr` (it was 20)" in lines[-1]) == failed


def test_a_folder_is_said_only_where_one_is_made(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for wrong in (["nothing"], [str(squares), "--val-split=test"], [str(squares), "--accumulate=99"]):
        assert status("train", *wrong, "--device=cpu", "--weights=none", "--epochs=1") == 2
        assert "folder is" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    words = ["--epochs=1", "--size=96", "--weights=none", "--batch-size=4", "--device=cpu", "--no-report"]
    status("train", str(squares), *words)
    assert f"the run's folder is runs/{squares.name}-1\n" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [f"{squares.name}-1"]


def test_a_new_run_names_those_that_were_interrupted_since_the_last_whole_one(
    run: Path,
    squares: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands.engine, "train", lambda *_, **__: None)
    monkeypatch.setattr(commands, "failure", lambda folder: None)

    def named() -> list[str]:
        status("train", str(squares))
        return [line for line in capsys.readouterr().out.splitlines() if "unfinished" in line]

    name = f"runs/{squares.name}"
    assert not named()
    for number in (1, 9, 10):
        shutil.copytree(run, f"{name}-{number}")
    assert not named()
    for number in (1, 10):  # before the validation at the end
        shutil.copy(run.with_name("previous.pt"), f"{name}-{number}/last.pt")
    how = "is unfinished, stopped after step 9: to go on with it, give the same command with --out"
    assert named() == [f"{name}-10 {how} {name}-10 --resume"]
    Path(f"{name}-9/last.pt").unlink()
    shutil.copy(run.with_name("previous.pt"), f"{name}-9/previous.pt")
    assert len(named()) == 3
    Path(f"{name}-10/diverged.txt").write_text("step 5")
    assert not named()
    assert status("train", str(squares), "--resume") == 0
    assert not capsys.readouterr().out


@pytest.fixture
def odd(run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Here: a run in `run` and its data in `set`, beside runs and sets that something is wrong with."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(squares, "set")
    for name in (
        "run",
        "moved",
        "list",
        "words",
        "cut",
        "bestless",
        "curveless",
        "headless",
        "spectrumless",
        "pictureless",
    ):
        shutil.copytree(run, name)
    made = json.loads(Path("run/run.json").read_text())
    made["arguments"]["data"] = "gone"
    Path("moved/run.json").write_text(json.dumps(made))
    Path("list/run.json").write_text('{"arguments": [], "training_boxes": 3}')
    made |= {"arguments": {"data": 5, "lr": "fast", "val_split": []}, "training_boxes": {"red": "many"}}
    Path("words/run.json").write_text(json.dumps(made))
    shutil.copytree(squares, "fewer")
    next(Path("fewer/images").glob("val_*")).unlink()
    made = json.loads(Path("run/run.json").read_text())
    made["arguments"]["data"] = str(tmp_path / "fewer")
    Path("pictureless/run.json").write_text(json.dumps(made))
    Path("run/val").mkdir()
    Path("run/val/metrics.json").write_text('{"checkpoint": "best.pt", "data": "", "split": "val"}')
    for name, text in (("others", '[{"image_id": 1}]'), ("predicted", '[\n{"file_name": "a.png"}\n]\n')):
        Path(name).mkdir()
        (Path(name) / "predictions.json").write_text(text)
    for file, text in (
        ("begun/unfinished.jsonl", "[5, {}]\n"),
        ("scored/metrics.json", "{}"),
        ("damaged/metrics.json", ""),
        ("logged/metrics.json", '{"iteration": 19}\n{"iteration": 39}\n'),
        ("lines/unfinished.jsonl", '{"iteration": 19}\n'),
        ("failed/failed.json", "{}"),
        ("drawn/boxes.png", "mine"),
        ("drawn/report.html", "mine"),
        ("report.html", "<title>mine</title>"),
    ):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(text)
    for part in ("train", "val"):
        write_yolo(Path("yolo"), three_pictures(), part)
    Path("damaged/predictions.json").write_text('[\n{"file_name": "a.png"}\n]\n')
    Path("bestless/best.pt").unlink()
    Path("curveless/metrics.csv").unlink()
    Path("spectrumless/spectrum.npz").write_text("x")
    for name in ("log.csv", "metrics.csv"):
        (Path("headless") / name).write_text("".join((Path("run") / name).read_text().splitlines(True)[1:]))
    Path("cut/best.pt").write_bytes(Path("run/best.pt").read_bytes()[:999])
    for name in ("trees", "nothing", "unlabelled"):
        shutil.copytree(squares, name)
        file = Path(name) / "annotations" / "instances_val.json"
        truth = json.loads(file.read_text())
        if name == "trees":
            truth["categories"] = [{"id": 1, "name": "oak"}, {"id": 2, "name": "elm"}]
        else:
            truth |= {"annotations": []} | ({"images": []} if name == "nothing" else {})
        file.write_text(json.dumps(truth))
    Path("file").write_text("no data")
    Path("run/best.onnx").write_bytes(b"of no interest")
    (tmp_path / "empty").mkdir()
    return tmp_path


OTHER_CLASSES = "split val has no box of the classes red, blue (the first rejected: "
ODD = (
    ("val run/best.pt trees", 2, OTHER_CLASSES),
    ("spectrum run/best.pt trees --out x", 2, OTHER_CLASSES),
    ("report run --data trees", 2, OTHER_CLASSES),
    ("val run/best.pt unlabelled", 2, "no usable box: add boxes"),
    ("val run/best.pt nothing", 2, "the list 'images' names none: add images"),
    ("report run --data nothing", 2, "the list 'images' names none: add images"),
    ("val run/best.pt empty", 2, "no data set recognised"),
    ("val run/best.pt empty", 2, "at any depth; looked for COCO: "),
    ("predict run set --out x", 0, "drawn: x"),
    ("predict empty set --out x", 2, "empty: this is a folder: give the path of a checkpoint"),
    ("predict run/best.pt https://a.b/c.jpg set --out x", 2, "ghmdet: https://a.b/c.jpg: an address, "),
    ("val run/best.pt http://a.b/c", 2, "ghmdet: http://a.b/c: no such file or folder"),
    ("val run/best.pt set --split test", 2, "no split 'test'"),
    ("val run set", 0, "written: run/val-set/metrics.json"),
    ("spectrum run set --out x", 0, "written: x/spectrum.npz"),
    ("export run --out x.pt2 --format torch", 0, "x.pt2: "),
    ("audit set --checkpoint run --out x", 0, "to review the first "),
    ("train set --weights run --out x --epochs 1 --no-report --size 96", 0, "All weights from run/best.pt."),
    ("val cut/best.pt set", 2, "cut/best.pt: cut off, as it is not all of"),
    ("val run/best.onnx set", 2, "run/best.onnx: an exported detector: give the checkpoint"),
    ("audit set --checkpoint run/best.onnx --out x", 2, "from Python `ghmdet.runtime.Detector` opens it"),
    ("val run/best.pt set --out file", 2, "file: is a file: give a folder"),
    ("predict run/best.pt set --out file", 2, "file: is a file: give a folder"),
    ("predict run/best.pt file --out x", 1, "1 of 1 picture could not be read; no other was given"),
    ("predict run/best.pt empty --out x", 2, "no pictures here"),
    ("predict run/best.pt set/images --out x --annotations set", 2, "set: cannot be read"),
    ("report run/best.pt", 2, "not a run (it is a file)"),
    ("report nowhere", 2, "not a run (there is no such folder)"),
    ("report empty", 2, "not a run (it has no run.json)"),
    ("report run --split test", 2, "no split 'test'"),
    ("report run --out empty", 2, "empty: is a folder: name a file"),
    (
        "report run --out run/last.pt",
        2,
        "--out run/last.pt: give a file whose name ends in .html",
    ),
    (
        "val run set --out run",
        2,
        "--out run is the folder of a training, whose files it could replace: give another",
    ),
    ("spectrum run set --out run", 2, "--out run is the folder of a training"),
    ("predict run set/images --out run", 2, "--out run is the folder of a training"),
    ("export run --out run/best.pt", 2, "--out run/best.pt: give a file whose name ends in .onnx"),
    ("export run --out x.onnx --format torch", 2, "--out x.onnx: give a file whose name ends in .pt2"),
    (
        "score set/annotations/instances_val.json r.json --json run/best.pt",
        2,
        "--json run/best.pt: give a file whose",
    ),
    (
        "score set/annotations/instances_val.json r.json --json set/annotations/instances_val.json",
        2,
        "is no metrics",
    ),
    (
        "score set/annotations/instances_val.json r.json --json run/run.json",
        2,
        "would be replaced, and is no metrics",
    ),
    (
        "score set/annotations/instances_val.json r.json --json run/metrics.json",
        2,
        "is no metrics file of `ghmdet score`",
    ),
    ("val run set --out run/inspection", 2, "is the folder of a training"),
    ("spectrum run set --out run/inspection", 2, "is the folder of a training"),
    ("predict run/best.pt set/images --out run/val", 2, "--out run/val holds results of `ghmdet val`"),
    ("predict run/best.pt set/images --out others", 2, "others/predictions.json is of another tool"),
    ("val run set --out predicted", 2, "--out predicted holds results of `ghmdet predict`"),
    ("val run set --out begun", 2, "--out begun holds results of `ghmdet predict`"),
    ("val run set --out damaged", 0, "written: damaged/metrics.json"),
    ("predict run/best.pt set/images --out damaged", 2, "--out damaged holds results of `ghmdet val`"),
    ("val run set --out scored", 2, "scored/metrics.json is not of `ghmdet val`"),
    ("predict run/best.pt set/images --out scored", 0, "drawn: scored"),
    ("val run set --out logged", 2, "logged/metrics.json is not of `ghmdet val`"),
    ("predict run set/images --out lines", 2, "lines/unfinished.jsonl is of another tool"),
    ("predict run set/images --out failed", 2, "failed/failed.json is of another tool"),
    ("spectrum run set --out drawn", 2, "drawn/boxes.png is not of `ghmdet spectrum`"),
    ("train set --out drawn", 2, "--out drawn holds report.html but no run"),
    (
        "report run --out drawn/report.html",
        2,
        "drawn/report.html is no report of ghmdet, and would be replaced",
    ),
    ("report run list", 2, "report.html is no report of ghmdet"),
    ("report run --out list/report.html", 2, "--out list is the folder of a training"),
    ("report run --out list/inspection/x.html", 2, "--out list/inspection is the folder of a training"),
    (
        "train yolo --out yolo/images/train/x",
        2,
        "is in yolo/images/train, all of whose pictures are a part of the data set",
    ),
    (
        "train yolo --out yolo/images/val",
        2,
        "all of whose pictures are a part of the data set: what is drawn there",
    ),
    ("compare yolo --arms ce,ghm-c --out yolo/images/val/x", 2, "whose pictures are a part of the data set"),
    ("audit yolo --out yolo/images/train/x", 2, "whose pictures are a part of the data set"),
    ("report pictureless", 0, "written: "),
    ("report curveless", 0, "written: "),
    ("report headless", 0, "written: "),
    ("train set --out headless --resume", 2, "cannot resume headless with other settings"),
    ("report spectrumless", 0, "not a spectrum, or damaged (ValueError): give a spectrum.npz"),
    ("report moved", 0, "not inspected: "),
    ("report moved --data gone", 2, "gone: no such file or folder"),
    ("report list", 0, "does not say what the run was trained on: give --data and --split"),
    ("report words", 0, "does not say what the run was trained on: give --data and --split"),
    ("report cut", 1, "not inspected: "),
    ("report bestless", 1, "bestless/best.pt: there is no such file: give the path"),
    ("val list/best.pt set", 0, "written: list/val-set/metrics.json"),
)


@pytest.mark.parametrize(("command", "expected", "said"), ODD, ids=[command for command, *_ in ODD])
def test_an_odd_use_ends_without_a_traceback_and_names_what_is_wrong(
    odd: Path, command: str, expected: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    device = [] if command.startswith(("train", "score", "export")) else ["--device=cpu"]
    assert status(*command.split(), *device) == expected
    told = capsys.readouterr()
    assert said in told.out + told.err
    assert told.err.count("\n") == (expected > 0)


def test_a_training_that_a_damaged_picture_ends_says_how_to_go_on(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, out = tmp_path / "squares", tmp_path / "run"
    shutil.copytree(squares, copy)
    picture = copy / "images" / "train_3.png"
    whole, save = picture.read_bytes(), Trainer._save
    words = [
        "train",
        str(copy),
        "--out",
        str(out),
        "--epochs=2",
        "--size=96",
        "--batch-size=4",
        "--device=cpu",
    ]
    words += ["--precision=fp32", "--weights=none", "--no-report"]

    def save_and_damage(self: Trainer) -> None:
        save(self)
        picture.write_bytes(whole[:99])

    picture.write_bytes(whole[:99])
    assert status(*words) == 2
    assert capsys.readouterr().err.endswith("'ghmdet data check'; then go on with --resume\n")
    picture.write_bytes(whole)
    with monkeypatch.context() as patch:
        patch.setattr("ghmdet.data.dataset.CACHE_LIMIT", 0)
        patch.setattr(Trainer, "_save", save_and_damage)
        assert status(*words, "--resume") == 2
    assert capsys.readouterr().err.endswith("; then go on with --resume --accept-changed-data\n")
    picture.write_bytes(whole)
    assert status(*words, "--resume", "--accept-changed-data") == 0


def test_findings_that_are_not_whole_are_made_anew(odd: Path) -> None:
    assert status("report", "run", "--device=cpu") == 0
    file = odd / "run" / "inspection" / "findings.json"
    whole = json.loads(file.read_text())
    for name in ("errors", "metrics", "hardest"):
        file.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        assert status("report", "run", "--device=cpu") == 0
        assert json.loads(file.read_text()).keys() == whole.keys()


def test_a_resume_of_nothing_and_an_option_of_another_loss_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*options: str) -> str:
        with pytest.raises(SystemExit):
            main(["train", str(tmp_path / "none"), "--out", str(tmp_path / "x"), *options])
        return capsys.readouterr().out

    assert said("--resume") == f"nothing to resume in {tmp_path / 'x'}: a new run begins\n"
    assert said("--ohem-ratio", "5") == "--ohem-ratio 5 does nothing with --cls-loss ghm-c\n"
    assert said("--ohem-ratio", "5", "--cls-loss", "ohem-per-class") == said() == ""
