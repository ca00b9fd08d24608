"""The command line: the functions that are commands, whose docstrings are their help, and how errors are shown."""

import ast
import errno
import io
import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from ghmdet.errors import GhmdetError, PartlyDone, unknown_name
from ghmdet.files import FULL
from ghmdet.options import parser
from ghmdet.signals import interrupt, on_stop

app = parser(
    name="ghmdet",
    help="Gradient-harmonized one-stage object detection, for badly imbalanced training data.",
    suppress_keyboard_interrupt=False,  # what it says, how to go on, is for `main` to print
)
ELSEWHERE = {
    "--imgsz": "--size",
    "--img-size": "--size",
    "--conf": "--threshold",
    "--score-thr": "--threshold",
    "--batch": "--batch-size",
    "--lr0": "--lr",
    "--project": "--out",
    "--work-dir": "--out",
}
"""What options of other tools are called here."""
data_app = App(name="data", help="Look at data sets and make new ones.")
app.command(data_app)


def _docstring(function: str) -> str:
    """The docstring of MODULE:FUNCTION, read from its file: to import it takes seconds, and `--help` lists them all."""
    module, _, name = function.partition(":")
    source = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    definitions = ast.parse(source.read_text(encoding="utf-8")).body
    (found,) = (each for each in definitions if isinstance(each, ast.FunctionDef) and each.name == name)
    return ast.get_docstring(found) or ""


for parent, command, function in (
    (app, "train", "ghmdet.commands:train"),
    (app, "val", "ghmdet.engine.evaluate:validate"),
    (app, "predict", "ghmdet.engine.predict:predict"),
    (app, "export", "ghmdet.engine.export:export"),
    (app, "score", "ghmdet.evaluation.score:score_files"),
    (app, "spectrum", "ghmdet.report.inspection:write_spectrum"),
    (app, "report", "ghmdet.report.page:write_report"),
    (app, "compare", "ghmdet.compare.run:compare"),
    (app, "demo", "ghmdet.demo:demo"),
    (app, "doctor", "ghmdet.doctor:doctor"),
    (data_app, "synth", "ghmdet.commands:synth"),
    (data_app, "check", "ghmdet.commands:check"),
    (data_app, "thin", "ghmdet.data.make.thinning:thin"),
    (data_app, "split", "ghmdet.data.make.split:split"),
    (data_app, "spoil", "ghmdet.data.make.spoil:spoil"),
):
    parent.command(function, name=command, help=_docstring(function))  # imported when it is called
app.command("ghmdet.audit.command:app", name="audit", help=_docstring("ghmdet.audit.command:write_audit"))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A line is there when it is said, in a pipe too; a file's name may hold what is no text.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
        on_stop(interrupt)
        result = command(*bound.args, **bound.kwargs)
    except UnknownCommandError as error:
        known = [name for name in error.app or () if not name.startswith("-")]
        _fail(str(unknown_name("command", (error.unused_tokens or ["?"])[0], known)), 2)
    except (GhmdetError, CycloptsError) as error:
        said = str(error)
        if isinstance(error, MissingArgumentError) and error.argument and not error.keyword:
            what = _help_of(error.argument.name, error.app)
            said = f"{error.argument.name} is missing: give it{what}, or look at --help"
        elif isinstance(error, UnknownOptionError) and error.token.source == "cli":
            said = _unknown_option(error)
        elif isinstance(error, UnusedCliTokensError):
            said = _too_much(error, sys.argv[1:] if arguments is None else arguments)
        lines = (" ".join(line.split()) for line in said.splitlines())
        _fail("; ".join(filter(None, lines)), 1 if isinstance(error, PartlyDone) else 2)
    except ImportError as error:
        missing = (error.__cause__ if isinstance(error.__cause__, ImportError) else error).name or "ghmdet"
        if missing.startswith("ghmdet"):
            raise
        _fail(f"this needs {missing}, which is not installed: pip install ghmdet brings it", 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(0)
    except FileExistsError as error:
        _fail(f"{error.filename}: is a file: give a folder", 2)
    except OSError as error:
        full = ": make room and give the same command again (train: with --resume)"
        mend = full if error.errno in FULL else ""
        mend = ": give a folder to write that is elsewhere (--out)" if error.errno == errno.EROFS else mend
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}{mend}", 2)
    except KeyboardInterrupt as stopped:
        _fail(str(stopped) or "stopped", 130)
    _exit(result if isinstance(result, int) else 0)


def _help_of(name: str, app: App | None) -> str:
    """The first sentence of an option's help in brackets, if there is one."""
    known = app.assemble_argument_collection(parse_docstring=True) if app else ()
    said = next((one.parameter.help for one in known if one.name == name), None)
    return f" ({' '.join(said.split()).partition('. ')[0].removesuffix('.')})" if said else ""


def _unknown_option(error: UnknownOptionError) -> str:
    """What an option that there is not may mean: one of nearly its name, or of another tool's name for it."""
    word = (error.token.keyword or error.token.value).partition("=")[0]
    options = (one for one in error.argument_collection if one.parse)
    known = [name for one in options for name in one.names if name.startswith("--")]
    near = [ELSEWHERE[word]] if ELSEWHERE.get(word) in known else get_close_matches(word, known, 1, 0.7)
    return f"unknown option {word}: " + (f"did you mean {near[0]}? " if near else "") + "--help lists all"


def _too_much(error: UnusedCliTokensError, words: list[str]) -> str:
    """What a word that belongs to nothing may be: a further value of an option that takes one each time it is given, or
    several with commas between them."""
    word = (error.unused_tokens or ["?"])[0]
    given = words[: words.index(word) + 1] if word in words else [word]
    place = max((at for at, each in enumerate(given) if each.startswith("--")), default=0)
    option, _, first = given[place].partition("=")
    known = error.app.assemble_argument_collection(parse_docstring=True) if error.app else ()
    own = next((one for one in known if option in one.names), None)
    if own and "list" in str(own.hint):
        return f"{word}: {option} takes one value each time it is given: write {option} {word}"
    if own and "commas between" in (own.parameter.help or ""):
        values = ",".join(filter(None, (each.strip(",") for each in [first, *given[place + 1 :]])))
        return f"{word}: {option} takes its values with commas between them: write {option} {values}"
    return f"{word}: one argument too many: leave it out, or look at --help"


def _fail(message: str, status: int) -> NoReturn:
    # A path has lost a slash of an address; no codes for the terminal.
    message = re.sub(r"\b(https?|s3|gs):/(?=[^/])", r"\1://", message)
    plain = "".join(one if one.isprintable() else repr(one)[1:-1] for one in message)
    print(f"ghmdet: {plain}", file=sys.stderr)
    _exit(status)


def _exit(status: int) -> NoReturn:
    if "RANK" in os.environ and "torch" in sys.modules:
        # A rank of torchrun whose process group is taken down by the interpreter aborts now and then
        # ("terminate called without an active exception"); everything is written, so leave without that.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
