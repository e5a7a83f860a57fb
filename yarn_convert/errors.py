"""The exceptions of yarn-convert. Each says in one line what is wrong, and in a hint what to do.

    YarnConvertError
    ├── UsageError        options that contradict each other or are out of range
    ├── InputError        a model that cannot be found, read or trusted
    │   ├── FormatError   a file whose header lies or is cut short
    │   ├── Disagreement  a file that says two things, of which readers take one or the other
    │   └── Unreachable   a model that cannot be read any further just now: the same command may go on later
    ├── Unsupported       a family, tensor, tokenizer or config key that the tables do not know
    │   └── UnknownModel  a model type of which nothing is known, not even its RoPE
    ├── Inexpressible     a RoPE that the target's format cannot carry exactly
    └── OutputError       an output that exists, does not fit on the disk or could not be written

The command line prints `error: message` and `hint: hint`, and exits with code 1; a traceback is always a defect.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping

LONGEST = 600  # characters of a message: what a hostile file says is quoted, but not at any length
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+")  # escape sequences, lines, directions of writing
_SURROGATES = re.compile(r"[\ud800-\udfff]+")


def printable(text: str) -> str:
    """One line without what a terminal would obey: names and values in a file are a stranger's."""
    return _CONTROL.sub("?", text)


class YarnConvertError(Exception):
    """Root of the tree. `message` becomes one short line; `hint` says what the user can do. `lines`: what there is to choose from, if
    that takes a line each."""

    def __init__(self, message: str, hint: str = "", lines: Iterable[str] = ()) -> None:
        message = _SURROGATES.sub("?", printable(message))
        self.message = message if len(message) <= LONGEST else f"{message[:LONGEST]} …"
        super().__init__(self.message)
        self.hint = _SURROGATES.sub("?", printable(hint))
        self.lines = tuple(_SURROGATES.sub("?", printable(line)) for line in lines)

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


def many(n: int, one: str, several: str = "") -> str:
    """So many of a thing: "1 segment", "1,024 segments". `several`: the word, where it has another end."""
    return f"{n:,} {one if n == 1 else several or f'{one}s'}"


class UsageError(YarnConvertError):
    """Options that contradict each other or are out of range."""


def no_such(what: str, value: object, known: Iterable[str]) -> UsageError:
    """For a value that is none of those that are known: the hint names the nearest, and all."""
    names = list(dict.fromkeys(known))
    return UsageError(f"unknown {what} {value!r}", f"{did_you_mean(value, names)}one of {', '.join(names)}")


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The beginning of a hint, with a blank at its end; "" where nothing is near."""
    return "".join(f"did you mean {name}? " for name in difflib.get_close_matches(str(value).lower(), known, 1))


class InputError(YarnConvertError):
    """A model that cannot be found, read or trusted."""


class FormatError(InputError):
    """A file whose header lies, is cut short, or asks for bytes that the file does not have."""


class Disagreement(InputError):
    """A file that says two things where one can hold: readers take one or the other."""


class Unreachable(InputError):
    """A model on the Hub that cannot be read any further just now: the same command may go on later."""


class Unsupported(YarnConvertError):
    """A family, tensor, tokenizer or config key that the tables do not know."""


class UnknownModel(Unsupported):
    """A model type of config.json of which nothing is known, not even its RoPE: another converter may know it."""


class Inexpressible(YarnConvertError):
    """A RoPE that the target's format, or the reader it is written for, cannot carry exactly."""


class OutputError(YarnConvertError):
    """An output that exists, does not fit on the disk or could not be written."""


# -- packages that only some commands need: which extra brings one, said before any work is done ------------------------

EXTRAS: Mapping[str, tuple[str, ...]] = {  # extra of pyproject.toml -> the modules of it that are imported here
    "validate": ("torch", "transformers", "accelerate", "tokenizers", "psutil", "matplotlib"),
    "torch": ("torch",),
    "llama-cpp": ("llama_cpp",),
    "datasets": ("datasets",),
    "search": ("cmaes",),
    "ruler": ("lm_eval", "datasets", "nltk", "scipy", "wonderwords"),
    "finetune": ("torch", "transformers", "accelerate", "tokenizers", "psutil", "peft"),
}
REPORT = ("matplotlib",)  # what only plots and pages need


def install(extra: str, newer: bool = False) -> str:
    """The command that brings an extra; `newer`: also where an older one is there."""
    return f"pip install {'-U ' if newer else ''}'yarn-convert[{extra}]'"


def need(extra: str, what: str, *modules: str) -> None:
    """Raise UsageError, with what to install, unless `modules`, by default all of the extra but those of reports, are here.

    `what` begins the sentence: "a validation". None of them is imported.
    """
    wanted = modules or tuple(m for m in EXTRAS[extra] if m not in REPORT)
    missing = [m for m in wanted if not there(m)]
    if missing:
        *names, last = (m.replace("_", "-") for m in missing)
        raise UsageError(f"{what} needs {', '.join(names)}{' and ' if names else ''}{last}", install(extra))


def there(module: str) -> bool:
    """Whether a module can be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # of a dotted name's parent, which find_spec imports
        return False


def missing(e: ModuleNotFoundError) -> UsageError | None:
    """The same for an import that failed all the same; None for a module of no extra, which is a fault of ours."""
    name = (e.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    return UsageError(f"this needs {name}", install(extra)) if extra else None
