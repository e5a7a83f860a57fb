"""The GGUF files of one repository, as they lie there: a row of the card's table for each, made of the manifest beside it.

Nothing else keeps that list, so it is true after every upload: a file that somebody deleted, or that another tool made, is not forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..checkpoint.hub_client import patient
from ..checkpoint.manifest import MANIFEST, Manifest
from ..checkpoint.naming import GgufModel, gguf_models, quantization_of
from ..errors import FormatError
from ..formats.decoding import decoded
from ..formats.split import stem_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

LARGEST = 16 << 20  # bytes of a manifest; ours have some thousand


@dataclass(frozen=True, slots=True)
class Shelved:
    """A GGUF model of a repository: its (first) file, how many parts it has, their bytes, and the manifest beside it, if any of ours."""

    name: str
    file: str
    parts: int
    size: int
    manifest: Manifest | None

    @property
    def type(self) -> str:
        """Of the weights, by the file's name, else by what was asked for."""
        asked = self.manifest.outtype.upper() if self.manifest and self.manifest.outtype != "auto" else ""
        return quantization_of(self.file) or asked or "as the base"

    @property
    def method(self) -> str:
        assert self.manifest is not None
        recipe = self.manifest.recipe
        return (recipe.long_rope or recipe).method if self.manifest.context > recipe.original_context else "none"

    @property
    def validated(self) -> str:
        """The verdict on record, with what it leaves open."""
        found = self.manifest.validation if self.manifest else None
        return ", ".join(part for part in (found.verdict, found.unchecked) if part) if found else "no"


def shelf(repo: str, revision: str | None, c: Checkpoint, manifest: Manifest) -> list[Shelved]:
    """The models in the repository once `c` is there, too, in the order of their names. Asks the Hub; raises as its client does."""
    there = _tree(repo, revision)
    own = stem_of(c.source.path)
    files = c.weight_files
    rows = [Shelved(own, files[0].name, len(files), sum(f.stat().st_size for f in files), manifest)]
    for m in gguf_models({name: f.size for name, f in there.items()}):
        if m.name != own:
            rows.append(Shelved(m.name, m.files[0], len(m.files), m.size or 0, _manifest(repo, revision, m, there)))
    return sorted(rows, key=lambda row: row.name)


def _tree(repo: str, revision: str | None) -> dict[str, RepoFile]:
    """The files of a repository; none where it, or the branch, is not there yet."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        found = patient(lambda: list(HfApi().list_repo_tree(repo, recursive=True, revision=revision)))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return {}
    return {f.path: f for f in found if isinstance(f, RepoFile)}


def _manifest(repo: str, revision: str | None, m: GgufModel, there: Mapping[str, RepoFile]) -> Manifest | None:
    """The record beside a model of the repository; None where there is none, or none that can be read."""
    from huggingface_hub import HfApi

    name = f"{m.name}.{MANIFEST}"
    if name not in there or there[name].size > LARGEST:
        return None
    path = patient(lambda: HfApi().hf_hub_download(repo, name, revision=revision))
    try:
        return decoded(json.loads(Path(path).read_bytes()), Manifest, name)
    except (FormatError, ValueError, RecursionError):
        return None
