from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ghmdet.doctor import EXTRAS, doctor
from ghmdet.engine.device import choose_device


def test_it_says_what_is_installed_and_what_auto_takes_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    said = capsys.readouterr().out
    for name in ("ghmdet", "torch", "pillow"):
        assert f"{name} {version(name)}" in said
    assert f"`--device auto --precision auto` takes {choose_device().reason}" in said
    assert "ImageNet weights of `nano`: " in said
    rows = {line.split()[0]: line for line in said.splitlines() if line.startswith("  ")}
    assert rows.keys() == EXTRAS.keys()
    for name, (package, use) in EXTRAS.items():
        assert rows[name].endswith(use)
        try:
            assert f" {version(package)} " in rows[name]
        except ImportError:
            assert " not installed " in rows[name]


def test_one_of_a_kind_has_no_plural(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    doctor()
    assert "\ndevices: 1 CPU core, 1 thread" in capsys.readouterr().out


def test_each_extra_of_the_project_is_in_it_with_one_of_its_packages() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = text.partition("[project.optional-dependencies]")[2].partition("dev = [")[0].splitlines()
    named = {line.partition(" = ")[0]: line for line in extras if line}
    assert named.keys() - {"docs"} == EXTRAS.keys()  # which is for those who work on the project
    for name, (package, _) in EXTRAS.items():
        assert f'"{package}>=' in named[name]


def test_without_torch_it_still_answers() -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom ghmdet.cli import main; main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "only ONNX files can be used: torch is not installed" in done.stdout
    assert all(name in done.stdout for name in EXTRAS)


@pytest.mark.parametrize(
    "error",
    ["ImportError", "OSError", "RuntimeError"],
)
@pytest.mark.parametrize(
    ("package", "before", "after"),
    [
        ("onnxruntime", "`--device auto --precision auto` takes ", "ONNX files cannot be used: "),
        ("torch", "devices: ", "only ONNX files can be used: "),
        ("torchvision", "devices: ", "only ONNX files can be used: "),
    ],
)
def test_a_broken_package_is_named_with_the_mend_and_the_rest_is_said(
    tmp_path: Path, package: str, before: str, after: str, error: str
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise {error}('DLL load failed')")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", "from ghmdet.cli import main; main(['doctor'])"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert (done.returncode, done.stderr) == (0, "")
    why = f"{error}: DLL load failed"
    mend = f"install it again, pip install --force-reinstall {package}"
    assert f"{after}{package} is installed but broken ({why}): {mend}\n" in done.stdout
    assert before in done.stdout and all(name in done.stdout for name in EXTRAS)
