"""The shape of the package: imports go one way, without circles, and every file can be read in one sitting."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ghmdet"
# From the ground up: a room may import its own floor and those below it.
FLOORS = (
    ("errors", "keys", "files", "options", "pictures", "progress", "recipes", "runtime", "signals", "words"),
    ("functional",),
    ("spectrum",),
    ("losses",),
    ("models", "integrations"),
    ("data",),
    ("evaluation", "draw"),
    ("engine",),
    ("report",),
    ("compare",),
    ("audit",),
    ("demo", "commands", "doctor", "watching", "", "cli", "__main__"),
)
LIMIT = 450

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in SOURCE.rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever it does so."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            named |= {name for name in whole if name.removeprefix("ghmdet.") in MODULES} or {node.module}
    return {name.removeprefix("ghmdet").lstrip(".") for name in named if name.split(".")[0] == "ghmdet"}


def floor(module: str) -> int:
    room = module.split(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str) -> None:
    upward = {used for used in imports(MODULES[module]) if floor(used) > floor(module)}
    assert not upward


def test_imports_make_no_circle() -> None:
    # A package's own face only hands names on.
    faces = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph = {name: imports(path) - faces - {name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for used in sorted(graph.get(name, ())):
                visit(used, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_is_short_enough_to_read(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LIMIT
