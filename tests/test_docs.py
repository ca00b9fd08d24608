"""The pages that a user reads, held against the product: commands, options, links, names of losses, examples."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ghmdet.cli import app
from ghmdet.models import BOX_LOSSES, CLS_LOSSES

REPO = Path(__file__).parents[1]
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        if "://" not in target:
            file, _, heading = target.partition("#")
            found = (page.parent / file) if file else page
            assert found.exists(), target
            if heading:
                headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in map(slug, headings), target


def spans(page: Path) -> list[tuple[str, bool]]:
    """The commands on a page, and whether each stands on a line of its own: a whole one."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    whole = re.findall(r"^ *(?:COMPARE=\")?(?:.*-m )?(ghmdet [a-z].*?)\"?$", text, re.MULTILINE)
    return [(line, not re.search(r"\.\.\.|\[", line)) for line in whole] + [
        (span, False) for span in re.findall(r"`[^`\n]*?(ghmdet [a-z][^`]*)`", text)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for line, whole in spans(page):
        words = [
            word for word in shlex.split(re.sub(r"[\[\]]", "", line), comments=True)[1:] if word != "--help"
        ]
        chain, command, _ = app.parse_commands(words)
        assert chain or not words, line
        if whole:
            app.parse_args(words, exit_on_error=False, print_error=False)
        known: set[str] = set()
        for argument in command[-1].assemble_argument_collection():
            known |= {*argument.names, *argument.negatives}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, line


def test_the_documentation_builds_with_every_link_and_anchor_right(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra docs")
    for name in ("docs", "src"):
        shutil.copytree(REPO / name, tmp_path / name)
    shutil.copy(REPO / "zensical.toml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    built = subprocess.run(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert built.returncode == 0, built.stdout[-2000:]
    pages = {page.stem for page in (tmp_path / "site").glob("*.html")}
    assert pages >= {page.stem for page in (REPO / "docs").glob("*.md")}
    listed = (tmp_path / "zensical.toml").read_text(encoding="utf-8")
    assert all(f'"{page.name}"' in listed for page in (REPO / "docs").glob("*.md"))
    assert "harmonizing_weights" in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")


def test_each_loss_is_named_where_losses_are_listed() -> None:
    for page in (REPO / "README.md", REPO / "docs" / "models.md"):
        text = page.read_text(encoding="utf-8")
        for name in (*CLS_LOSSES, *BOX_LOSSES):
            assert f"`{name}`" in text, (page.name, name)


def test_the_examples_of_the_readme_run() -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    blocks = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import torch" in block
    ]
    assert blocks
    for block in blocks:
        exec(block, {})
