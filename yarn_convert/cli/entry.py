"""The command line from its words to its exit code: every known error is one line and a hint, under --json an object, too."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextvars import copy_context
from pathlib import Path
from typing import Any, NoReturn

import typer

from ..errors import UsageError, YarnConvertError, did_you_mean, missing, printable
from .app import app
from .folding import fold, room
from .help import SETTINGS, styled
from .show import print_anywhere, warnings_as_lines

STYLES: dict[str, dict[str, Any]] = {"error:": {"fg": "red", "bold": True}, "hint:": {"fg": "cyan"}}
INTERRUPTED = 130  # what Typer makes of Ctrl-C


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Exit code 1 after a known error."""
    args = list(sys.argv[1:] if argv is None else argv)
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    print_anywhere()
    warnings_as_lines()
    try:
        args = _words(args, group)
        code = copy_context().run(group.main, args, prog_name="yarn-convert", standalone_mode=False)
        sys.stdout.flush()
    except YarnConvertError as e:
        _fail(args, e.message, e.hint, lines=e.lines)
    except typer.TyperException as e:
        given = getattr(e, "ctx", None)
        told = f"{given.command_path if given else 'yarn-convert'} --help"
        wrong = getattr(e, "option_name", "")
        said = f"there is no option {wrong}" if wrong else e.format_message().replace("Value error, ", "")
        near = _near(wrong, given.command.params) if wrong and given else ""
        _fail(args, said, _meant(args) or (f"{near}See {told}" if near else told))
    except ModuleNotFoundError as e:
        if (known := missing(e)) is None:
            raise
        _fail(args, known.message, known.hint)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except PermissionError as e:
        _fail(args, f"no permission to read {e.filename}", "check the file's owner and mode")
    except OSError as e:  # what a command does with files is caught where it is known: this is most likely stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more at its end
        _fail(args, f"could not write {e.filename or 'to stdout'}: {e.strerror or e}", "free some space, or give another place")
    if code == INTERRUPTED:
        begun = "; it finishes first what was begun" if "--in-place" in args or args[0] == "repair" else ""
        _fail(args, "interrupted", "run the same command again" + begun, code)
    sys.exit(code or 0)


def _words(args: list[str], group: Any) -> list[str]:
    """The command line with what people leave out: a model alone means convert, nothing at all --help. UsageError for a first word that
    looks like a command."""
    if not args:
        return ["--help"]
    if args == ["evaluate"]:
        return ["evaluate", "--help"]
    first, own = args[0], {option for p in group.params for option in p.opts}
    if first in group.commands or first in own.union(SETTINGS["help_option_names"]):
        return args
    if near := did_you_mean(first, group.commands):
        from ..families import ALIASES

        if first not in ALIASES and not Path(first).exists():
            raise UsageError(f"there is no command {first!r}, and no model of that name here", f"{near}See yarn-convert --help")
    return ["convert", *args]


def _near(wrong: str, params: Sequence[Any]) -> str:
    """The beginning of a hint that names the option nearest to one that is none; what all of them begin with does not count."""
    return did_you_mean(wrong.strip("-"), [option.strip("-") for p in params for option in p.opts]).replace("mean ", "mean --")


def _meant(args: Sequence[str]) -> str:
    """What was meant by a -q before a type of weights, as other converters have it."""
    from ..formats.quantizer import MIXES

    at = args.index("-q") + 1 if "-q" in args else len(args)
    type_ = args[at].lower() if at < len(args) else ""
    return f"-q is --quiet here; for the type of the weights: --outtype {type_}" if type_ in MIXES else ""


def _fail(args: Sequence[str], message: str, hint: str, code: int = 1, lines: Sequence[str] = ()) -> NoReturn:
    """End with one line and a hint on stderr, between them `lines` to choose from; with --json with an object on stdout, too. Before them,
    where it is asked for, the traceback of what is being handled, with what led to it."""
    if os.environ.get("YARN_CONVERT_DEBUG") and (e := sys.exc_info()[1]):
        e.__suppress_context__ = False
        traceback.print_exception(e)
    if "--json" in args:
        print(json.dumps({"error": message, "hint": hint} | ({"choices": list(lines)} if lines else {}), indent=2))
    said = [f"error: {message}", *(f"  {line}" for line in lines), *([f"hint: {hint}"] if hint else [])]
    for line in fold(map(printable, said), room(sys.stderr)):
        start = next((word for word in STYLES if line.startswith(word)), "")
        print((styled(start, sys.stderr, **STYLES[start]) if start else "") + line[len(start) :], file=sys.stderr)
    sys.exit(code)
