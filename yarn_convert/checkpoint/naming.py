"""What people paste for a model: an id or an address of the Hub, with a file or a quantization in it; a Modelfile. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from ..errors import InputError, did_you_mean
from ..formats.split import part_name, stem_of

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
PAGES = ("tree", "blob", "resolve", "raw", "commit")  # what stands before a revision in an address
OTHERS = ("datasets", "spaces", "collections", "papers", "docs", "models")  # what no user is called there
# As llama.cpp and those who publish its files name types: Q4_K_M, IQ2_XXS, TQ1_0, MXFP4_MOE, BF16; Unsloth's mixes have UD- before it.
TYPE = r"(?:UD[-_])?(?:(?:I?Q|TQ)\d(?:_[A-Z0-9]+)*|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)"
QUANTIZATION = re.compile(rf"(?<![A-Z0-9])({TYPE})(?![A-Z0-9])", re.IGNORECASE)
ENDING = re.compile(rf"[-._]{TYPE}$", re.IGNORECASE)
BESIDE = re.compile(r"(^|[-._/])(mmproj|imatrix)([-._]|$)", re.IGNORECASE)  # of what sees, and of importance: no models


@dataclass(frozen=True, slots=True)
class Named:
    """A model on the Hub as it was named: its repository and, where they were said, a revision, a .gguf file or a folder in it, and what
    stood behind a colon."""

    repo: str
    revision: str | None = None
    file: str | None = None
    folder: str | None = None
    tag: str | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether a GGUF is meant, also of a repository that has the model in HF layout, too."""
        return bool(self.file or self.tag)


def named(text: str) -> Named | None:
    """What `text` names on the Hub: org/name, its address, or either with :QUANTIZATION as llama.cpp and Ollama write it. None for what
    is no such name; InputError for an address of the Hub that is none of a model."""
    path = _path_on_the_hub(text)
    if path is None:
        name, colon, tag = text.rstrip("/").partition(":")
        return Named(name, tag=_tag(tag)) if HUB_ID.fullmatch(name) and (tag or not colon) and not name.endswith(".gguf") else None
    name, _, tag = path.partition(":")
    parts = [unquote(part) for part in name.split("/") if part]
    if text.lower().startswith("hf://") and len(parts) > 1:  # hf://org/name@revision/file
        repo, at, revision = parts[1].partition("@")
        inside = ["resolve" if parts[-1].endswith(".gguf") else "tree", revision or "main"] if at or parts[2:] else []
        parts = [parts[0], repo, *inside, *parts[2:]]
    page, rest = (parts[2], parts[4:]) if len(parts) > 3 else ("", [])
    if len(parts) < 2 or parts[0] in OTHERS or ".." in parts or (len(parts) > 2 and page not in PAGES):
        raise InputError(f"{text!r} is no model's address on the Hub", "give the address of the model's page, or org/name")
    shown = [] if page else parse_qs(urlsplit(text).query).get("show_file_info", [])  # the Hub's own page on a GGUF
    inner = "/".join(rest or shown)
    gguf = inner.endswith(".gguf")
    return Named(
        "/".join(parts[:2]), parts[3] if page else None, inner if gguf else None, inner if page == "tree" and rest else None, _tag(tag)
    )


def _tag(tag: str) -> str | None:
    return tag if tag and tag.lower() != "latest" else None


def _path_on_the_hub(text: str) -> str | None:
    """What stands behind the Hub's host; None where there is none."""
    scheme, _, rest = text.partition("://")
    if rest and scheme.lower() == "hf":
        return rest
    try:
        url = urlsplit(text if rest else f"https://{text}")
        own = urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname
        hosts = {*HOSTS, *([own] if own and rest else [])}
        return url.path.strip("/") if url.scheme in ("https", "http") and url.hostname in hosts and "/" in text else None
    except ValueError:  # of an address with brackets
        return None


# -- quantizations ----------------------------------------------------------------------------------------------------


def quantization_of(name: str) -> str:
    """The type of weights that a file's name says, in capitals, as Q4_K_M; "" where it says none."""
    found = QUANTIZATION.findall(name.removesuffix(".gguf"))
    return found[-1].upper() if found else ""


def plain_name(stem: str) -> str:
    """A file's stem without the type of weights at its end."""
    return ENDING.sub("", stem) or stem


@dataclass(frozen=True, slots=True)
class GgufModel:
    """One model among a repository's GGUF files: the files of a split one are one. `name`: its path without .gguf and the part's number;
    `size` in bytes, None where it was not asked for."""

    name: str
    files: tuple[str, ...]
    size: int | None

    @property
    def quantization(self) -> str:
        """By the file's name, else by its folder's."""
        return next((q for part in reversed(PurePosixPath(self.name).parts) if (q := quantization_of(part))), "")


def gguf_models(files: Mapping[str, int | None]) -> list[GgufModel]:
    """The models among a repository's files, given with their sizes: neither what sees nor matrices of importance, nor a split one of
    which a part is missing."""
    groups: dict[str, list[str]] = {}
    for name in sorted(files):
        path = PurePosixPath(name)
        if path.suffix == ".gguf" and not BESIDE.search(path.name):
            groups.setdefault(str(path.with_name(stem_of(path))), []).append(name)
    found = []
    for name, parts in groups.items():
        stem = PurePosixPath(name).name
        if len(parts) > 1 or stem_of(PurePosixPath(parts[0])) != PurePosixPath(parts[0]).stem:
            wanted = {part_name(stem, no, _count(parts[0])) for no in range(_count(parts[0]))}
            if {PurePosixPath(part).name for part in parts} != wanted:
                continue
        sizes = [size for part in parts if (size := files[part]) is not None]
        found.append(GgufModel(name, tuple(parts), sum(sizes) if len(sizes) == len(parts) else None))
    return found


def _count(part: str) -> int:
    return int(PurePosixPath(part).stem[-5:]) if re.search(r"-\d{5}-of-\d{5}\.gguf$", part) else 1


def chosen(models: Iterable[GgufModel], wish: Named) -> GgufModel:
    """The model that is meant. InputError where there is none, or several: its `lines` list them, and its hint says how to name one."""
    models = list(models)
    if wish.file:
        found = [m for m in models if wish.file in m.files]
    elif wish.tag:
        found = [m for m in models if wish.tag.lower() in _names(m)] or [m for m in models if m.quantization == wish.tag.upper()]
    else:
        found = models
    if wish.folder:
        found = [m for m in found if m.name.startswith(wish.folder.rstrip("/") + "/")] or found
    if len(found) == 1:
        return found[0]
    if not models:
        raise InputError(f"{wish.repo} on the Hub has no GGUF model", "leave out what names a file of it, or is it another repository?")
    what = wish.file or wish.tag
    said = f"several GGUF models ({what})" if what and found else f"no GGUF model {what!r}" if what else f"{len(found)} GGUF models"
    shown = found or models
    near = did_you_mean(what, [m.quantization.lower() for m in models if m.quantization]) if what and not found else ""
    hint = f"{near}name one by what stands before it, as {wish.repo}:{_shortest(shown[0], models)}"
    raise InputError(f"{wish.repo} on the Hub has {said}", hint, [_line(m, models) for m in shown])


def _names(m: GgufModel) -> set[str]:
    """What names this model alone: its path, its file's name and both without .gguf, in small letters."""
    name = PurePosixPath(m.name).name
    return {text.lower() for text in (m.name, f"{m.name}.gguf", name, f"{name}.gguf", *(PurePosixPath(f).name for f in m.files[:1]))}


def _shortest(m: GgufModel, models: list[GgufModel]) -> str:
    """The shortest that names it: its quantization where no other has that."""
    alone = m.quantization and sum(other.quantization == m.quantization for other in models) == 1
    return m.quantization if alone else f"{m.name}.gguf"


def _line(m: GgufModel, models: list[GgufModel]) -> str:
    size = "" if m.size is None else f"{m.size / 1e9:7.2f} GB"
    parts = f" in {len(m.files)} parts" if len(m.files) > 1 else ""
    return f"{_shortest(m, models):<12} {size:>10}  {m.name}.gguf{parts}"


# -- Modelfiles -------------------------------------------------------------------------------------------------------


def modelfile_from(text: str) -> str | None:
    """What a Modelfile's first FROM names; None where it has none. Texts in three quotes, as templates, are passed over
    (Ollama's parser/parser.go)."""
    quoted = False
    for line in text.splitlines():
        command, _, value = line.strip().partition(" ")
        if not quoted and command.lower() == "from" and value.strip():
            return value.strip().strip('"')
        quoted ^= line.count('"""') % 2 == 1 and not line.lstrip().startswith("#")
    return None
