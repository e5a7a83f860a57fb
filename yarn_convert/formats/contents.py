"""Which files belong to a model: what is downloaded, copied into an output and published. All else in a folder is named and left.

Names are those that transformers looks for (`VOCAB_FILES_NAMES` of its tokenizers, utils/hub.py), mistral-common's and the
quantizers'. A model may bring code (`auto_map`); it comes along with what it imports and names, and is never run here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .decoding import parse
from .files import exists, inside, read, read_text

CONFIG, GENERATION = "config.json", "generation_config.json"
ROPE_FILE = "rope.safetensors"  # frequencies and multiplier of an output whose config.json cannot say them
TEMPLATES = "additional_chat_templates"
CONFIGS = (CONFIG, GENERATION, "*processor_config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json")
MAPPING = (CONFIG, "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")  # may have an `auto_map`
TOKENIZERS = (
    "tokenizer.json", "tokenizer.*.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json",
    "tokenizer.model", "tokenizer.model.v*", "spiece.model", "spm*.model", "sentencepiece*.model", "tiktoken.model", "*.tiktoken",
    "*.spm", "vocab.json", "vocab.txt", "vocab.bpe", "vocab.model", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
PAPERS = re.compile(
    r"README\.md|(licen[cs]e|copying|notice|(acceptable[-_])?use[-_]policy)([-_ ][-\w ]*(\.\d[-\w ]*)*)?(\.(md|txt|rst|html?|pdf))?",
    re.IGNORECASE,
)
DATA = re.compile(r"""["']([\w.-]+\.(?:model|json|txt|tiktoken|bpe|spm|vocab))["']""")  # a file that code names
IMPORT = re.compile(r"^[ \t]*from[ \t]+\.+(\w*)[ \t]+import[ \t]+\(?([^)#\n]*)", re.MULTILINE)
SECRET = re.compile(
    r"\.env.*|\.?_?netrc|id_(rsa|dsa|ecdsa|ed25519).*|.*\.(pem|key|p12|pfx|ppk|jks|keystore|kdbx|gpg)"
    r"|(.*[-_.])?(tokens?|secrets?|credentials?|passwords?|passwd|(api|access|private|ssh|licen[cs]e)[-_]?keys?)([-_.].*)?",
    re.IGNORECASE,
)


def is_known(name: str) -> bool:
    """Whether a file belongs to a model by its name alone, as `/` separates it from the model's folder."""
    folder, _, file = name.rpartition("/")
    if folder:
        return folder == TEMPLATES and file.endswith(".jinja")
    return any(fnmatchcase(name, pattern) for pattern in CONFIGS + TOKENIZERS) or bool(PAPERS.fullmatch(name) and not looks_secret(name))


def looks_secret(name: str) -> bool:
    """Whether a name is such as keys and passwords are kept under. What belongs to a model is none."""
    return bool(SECRET.fullmatch(name.rpartition("/")[2]))


def belonging(folder: Path) -> list[str]:
    """The names of the files in a folder that belong to the model but for its weights, in order. A link out of the folder and a pipe
    are among them: to open those is an error."""
    names = {p.name for p in folder.iterdir()}
    found = {name for name in names if is_known(name) and not (PAPERS.fullmatch(name) and (folder / name).is_dir())}
    if TEMPLATES in names:
        found |= {f"{TEMPLATES}/{p.name}" for p in inside(folder, TEMPLATES).glob("*.jinja")}
    return sorted(found | (code_of(folder) & names))


def code_of(folder: Path) -> set[str]:
    """What `auto_map` asks for: modules, those that they import from beside them, and data files that they name. Not all need be
    there."""
    left = {f"{module}.py" for name in MAPPING for module in _modules(folder, name)}
    found: set[str] = set()
    while left:
        found.add(name := left.pop())
        if exists(folder, name):
            text = read_text(folder, name)
            found |= {data for data in DATA.findall(text) if not looks_secret(data)}
            left |= {f"{module}.py" for module in _imports(text)} - found
    return found


def _modules(folder: Path, name: str) -> set[str]:
    """The modules of the model's own that a config maps classes to; `REPO--MODULE.CLASS` is another repository's."""
    try:
        config = parse(read(folder, name)) if exists(folder, name) else {}
    except ValueError:  # its reader says so
        return set()
    mapped = config.get("auto_map") if isinstance(config, Mapping) else None
    values: Iterable[Any] = mapped.values() if isinstance(mapped, Mapping) else ()
    texts = [text for value in values for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return {match[1] for text in texts if (match := re.fullmatch(r"(\w+)\.\w+", text))}


def _imports(text: str) -> set[str]:
    """The modules beside it that a module imports: `from .x import y`, `from . import x`."""
    found = set()
    for module, names in IMPORT.findall(text):
        found |= {module} if module else {n.split()[0] for n in names.split(",") if n.split() and n.split()[0].isidentifier()}
    return found


def left_over(folder: Path, taken: Iterable[str]) -> tuple[str, ...]:
    """What lies in a folder and is not among `taken`: names at its top, a folder's with a `/`. Hidden ones only when they look like
    secrets."""
    kept = {name.partition("/")[0] for name in taken}
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    return tuple(n for n in names if n.rstrip("/") not in kept and (not n.startswith(".") or looks_secret(n)))
