"""Sends an output to the Hub: what is there stays, what the base has is copied on the server, the rest is uploaded.

All of it is one commit, so a reader of the repository sees the old model or the new one. huggingface_hub does the moving: it
retries, and does not send again what the Hub already has, so that an interrupted upload goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..asking import taking
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.hub_client import BUSY, answer_of, is_repo, patient, to_reach_it
from ..checkpoint.manifest import Base, Manifest, manifest_path, read_manifest
from ..checkpoint.source import Say, resolve
from ..conversion.intention import check_recipe, intention_of
from ..errors import InputError, OutputError, UsageError
from ..formats.contents import belonging, left_over, looks_secret
from ..formats.digests import differing, sha256
from ..formats.files import exists, regular
from ..formats.general import README
from ..formats.inputs import NOTHING, Inputs, noticing
from ..hearing import tell, without_bars
from ..options import UploadOptions
from ..targets.safetensors import WRITTEN
from .model_card import local_card, render
from .shelf import Shelved, shelf

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, HfApi
    from huggingface_hub.hf_api import RepoFile

UPLOAD, COPY, UNCHANGED = "upload", "copy", "unchanged"
LONG = 4 << 30  # bytes that take some ten seconds to hash
WEIGHTS = (".safetensors", ".gguf", ".bin")
RESTRICTED = (
    "other",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "gemma",
    "cc-by-nc-4.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-4.0",
)


class CopyRefused(OutputError):
    """The server does not copy files that are not on this machine."""


@dataclass(frozen=True, slots=True)
class Item:
    """One file of the repository and its way there. `data` is set for a file that is made on the spot, as the card is."""

    name: str
    size: int
    way: str
    path: Path | None = None
    data: bytes | None = None
    why: str = ""

    def to_dict(self) -> dict[str, str | int]:
        return {"file": self.name, "bytes": self.size, "way": self.way, **({"why": self.why} if self.why else {})}


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What was published: `url` is the commit's address, or the pull request's; `files` are those of the output and the way each went,
    "upload", "copy" or "unchanged"; `left`: what lies beside the output and was not published; `warnings`: what a publisher should know."""

    repo: str
    files: tuple[Item, ...]
    left: tuple[str, ...]
    warnings: tuple[str, ...]
    url: str

    def to_dict(self) -> dict[str, Any]:
        """As --json prints it."""
        return {
            "repo": self.repo,
            "files": [i.to_dict() for i in self.files],
            "left": list(self.left),
            "warnings": list(self.warnings),
            "url": self.url,
        }


@dataclass(frozen=True, slots=True)
class Upload:
    """A planned upload. `warnings`: what a publisher should know before anything leaves; `left`: what lies there and does not;
    `inputs`: the files as they were when they were looked at."""

    repo: str
    private: bool
    revision: str | None
    create_pr: bool
    items: tuple[Item, ...]
    card: str
    warnings: tuple[str, ...]
    base: Base
    context: int
    left: tuple[str, ...] = ()
    inputs: Inputs = NOTHING

    def as_json(self) -> dict[str, Any]:
        """What --dry-run shows beside the card."""
        return {k: v for k, v in self.done("").to_dict().items() if k != "url"}

    def done(self, url: str) -> Uploaded:
        return Uploaded(self.repo, self.items, self.left, self.warnings, url)

    def bytes(self, way: str) -> int:
        return sum(i.size for i in self.items if i.way == way)


def plan_upload(model: str, asked: UploadOptions, say: Say = lambda line: None) -> Upload:
    """What an upload of `model`, an output of yarn-convert, would do. Asks the Hub what is there and sends nothing; `say` hears
    how far the hashing of large files is.

    Raises UsageError for a model that failed validation or was never validated (`allow_unvalidated` allows it), InputError when
    the Hub does not answer.
    """
    check_repo(asked.repo)
    with noticing() as inputs:
        plan = _planned(model, asked, say)
    return replace(plan, inputs=inputs)


def _planned(model: str, asked: UploadOptions, say: Say) -> Upload:
    repo, revision = asked.repo, asked.revision
    c = open_checkpoint(resolve(model))
    manifest = read_manifest(c.source.path)
    if manifest is None:
        raise UsageError(f"{model} has no manifest of yarn-convert: what it is cannot be said", "convert it, or upload it with 'hf upload'")
    if not asked.allow_unvalidated:
        _check_validated(c, manifest, model)
    files = _files(c) | _mmproj(c, manifest, say)
    there = _there(repo, [README, *files], revision)
    existing = _remote_card(repo, revision) if README in there else local_card(c.source.path)
    base_card, warnings = ask_base(manifest.base)
    if manifest.validation and (unchecked := manifest.validation.unchecked):
        warnings = [*warnings, f"{unchecked}: yarn-convert validate {model} --base BASE"]
    text = render(c, manifest, repo, existing, base_card, _shelf(repo, revision, c, manifest) if c.gguf else ())
    left, secrets = _left(c, files)
    items = [_made(README, text.encode(), there)]
    items += [_item(name, path, there, say) for name, path in files.items() if name != README]
    if manifest.weights.identical_to_base and manifest.base.repo:
        items = _copies(items, manifest.base, say)
    said = (*warnings, *secrets)
    return Upload(repo, asked.private, revision, asked.create_pr, tuple(items), text, said, manifest.base, manifest.context, left)


@taking(UploadOptions)
def upload(model: str, options: UploadOptions) -> Uploaded:
    """Publish `model`, an output of yarn-convert: `upload(model, "user/name", private=True)`, with the fields of `UploadOptions` by
    keyword. All is one commit. Raises as `plan_upload` and `run_upload` do."""
    plan = plan_upload(model, options, tell)
    return plan.done(run_upload(plan, tell))


def check_repo(repo: str) -> None:
    if not is_repo(repo):
        raise UsageError(f"{repo!r} is no name of a repository", "give it as user/name")


def _check_validated(c: Checkpoint, manifest: Manifest, model: str) -> None:
    """UsageError unless the record says that it passed, and is about these very files and this recipe."""
    verdict = manifest.validation.verdict if manifest.validation else None
    what = "was never validated" if verdict is None else f"has not passed its validation ({verdict})" if verdict != "passed" else ""
    if not what and (why := _changed(c, manifest)):
        what = f"was changed since it passed its validation: {why}"
    if what:
        raise UsageError(f"{model} {what}", f"yarn-convert validate {model}, or --allow-unvalidated")


def _changed(c: Checkpoint, manifest: Manifest) -> str:
    """Why a model is not the one that was validated; "" if it is."""
    record = manifest.validation
    if record is None or not record.files or record.intention is None:
        return "its record does not say of which files"
    if (record.intention.recipe.rope(), record.intention.context) != (manifest.recipe.rope(), manifest.context):
        return "the manifest has another recipe or context"
    return differing(record.files, c.files) or str(check_recipe(c, intention_of(c, None, None, None))["why"])


def _files(c: Checkpoint) -> dict[str, Path]:
    """name in the repository -> file: of a folder what belongs to the model, and a GGUF's files with their manifest."""
    path = c.source.path
    if c.gguf:
        return {path.name: path} | {p.name: regular(p.parent, p.name) for p in (*c.weight_files[1:], manifest_path(path))}
    names = {*belonging(path), *(f.name for f in c.weight_files), *(name for name in WRITTEN if exists(path, name))}
    return {n: regular(path / n.rpartition("/")[0], n.rpartition("/")[2]) for n in sorted(names)}


def _mmproj(c: Checkpoint, manifest: Manifest, say: Say) -> dict[str, Path]:
    """The file of what sees or hears that was made with a GGUF, under its name. InputError where it is not that file."""
    made, folder = manifest.mmproj or None, c.source.path.parent
    if made is None or not c.gguf:
        return {}
    again = "convert the model again with --mmproj"
    if not made.file.endswith(".gguf"):
        raise InputError(f"the manifest's mmproj {made.file!r} is no GGUF file", again)
    path = regular(folder, made.file)
    if made.sha256 and _told(path, say) != made.sha256:
        raise InputError(f"{made.file} is not the file that was made with {c.source.path.name}: its SHA-256 differs", again)
    return {made.file: path}


def _left(c: Checkpoint, files: Iterable[str]) -> tuple[tuple[str, ...], list[str]]:
    """(what lies beside the files that are published, a warning of what looks like a secret there)."""
    if c.gguf:
        return ((README,) if exists(c.source.path.parent, README) and not local_card(c.source.path) else ()), []
    left = left_over(c.source.path, [README, *files])
    secrets = [name for name in left if looks_secret(name)]
    return left, [
        f"these look like secrets, and stay here: {', '.join(secrets)}; they do not belong in a model's folder"
    ] if secrets else []


def _there(repo: str, names: list[str], revision: str | None) -> dict[str, RepoFile]:
    """name -> what the Hub says of it, for those of `names` that are in the repository; empty where it does not exist yet."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        found = patient(lambda: HfApi().get_paths_info(repo, names, revision=revision))
        return {f.path: f for f in found if isinstance(f, RepoFile)}
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return {}
    except Exception as e:
        raise hub_error(repo, e) from None


def _shelf(repo: str, revision: str | None, c: Checkpoint, manifest: Manifest) -> list[Shelved]:
    try:
        return shelf(repo, revision, c, manifest)
    except Exception as e:
        raise hub_error(repo, e) from None


def _remote_card(repo: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    try:
        return Path(patient(lambda: HfApi().hf_hub_download(repo, README, revision=revision))).read_text("utf-8")
    except Exception as e:
        raise hub_error(repo, e) from None


def _item(name: str, path: Path, there: Mapping[str, RepoFile], say: Say) -> Item:
    size, remote = path.stat().st_size, there.get(name)
    if remote is None or remote.size != size:
        return Item(name, size, UPLOAD, path)
    same = _told(path, say) == remote.lfs.sha256 if remote.lfs else git_sha(path.read_bytes()) == remote.blob_id
    return Item(name, size, UNCHANGED if same else UPLOAD, path)


def _made(name: str, data: bytes, there: Mapping[str, RepoFile]) -> Item:
    """A small file that is made on the spot."""
    remote = there.get(name)
    return Item(name, len(data), UNCHANGED if remote and remote.blob_id == git_sha(data) else UPLOAD, data=data)


def _told(path: Path, say: Say) -> str:
    """The SHA-256 of a file; `say` hears of one that takes a while, and of every tenth that is done."""
    size, done = path.stat().st_size, 0

    def progress(n: int) -> None:
        nonlocal done
        before, done = done * 10 // size, done + n
        if size > LONG and done * 10 // size > before:
            say(f"{path.name}: compared with the Hub's by its SHA-256, {done / size:.0%}")

    return sha256(path, progress)


def git_sha(data: bytes) -> str:
    """The id of a regular file in a git repository."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _copies(items: list[Item], base: Base, say: Say) -> list[Item]:
    """Weight files that the base has at its pinned commit, byte for byte, are copied there."""
    from huggingface_hub import CommitOperationCopy, HfApi
    from huggingface_hub.hf_api import RepoFile

    if "src_repo_id" not in CommitOperationCopy.__dataclass_fields__:
        return [replace(i, why="this huggingface_hub cannot copy between repositories") if _is_weights(i) else i for i in items]
    names = [i.name for i in items if _is_weights(i)]
    try:
        found = patient(lambda: HfApi().get_paths_info(str(base.repo), names, revision=base.commit))
        remote = {f.path: f for f in found if isinstance(f, RepoFile)}
    except Exception as e:
        return [replace(i, why=f"the base cannot be looked at: {type(e).__name__}") if _is_weights(i) else i for i in items]

    def item(i: Item) -> Item:
        f = remote.get(i.name)
        if not _is_weights(i) or f is None or f.lfs is None or i.path is None:
            return i
        return replace(i, way=COPY) if f.size == i.size and f.lfs.sha256 == _told(i.path, say) else i

    return [item(i) for i in items]


def _is_weights(i: Item) -> bool:
    return i.way == UPLOAD and i.name.endswith(WEIGHTS)


def ask_base(base: Base) -> tuple[dict[str, Any], list[str]]:
    """(metadata of the base's card, what its licence and its gate say of publishing)."""
    from huggingface_hub import HfApi

    repo = base.repo
    if not repo:
        return {}, []
    try:
        info = patient(lambda: HfApi().model_info(repo, revision=base.commit))
    except Exception as e:
        return {}, [f"the base {repo} cannot be asked for its licence: {type(e).__name__}"]
    data = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
    found = []
    if getattr(info, "gated", False):
        found.append(f"the base {repo} is gated: its terms may forbid to publish a copy that is not")
    if data.get("license") in RESTRICTED:
        found.append(f"the base {repo} has the licence {data['license']!r}: read what it asks of those who redistribute")
    return data, found


def run_upload(plan: Upload, say: Say = print, sent: Sequence[CommitOperationAdd] = ()) -> str:
    """Carry it out and return the address of the commit, or of the pull request. OutputError when the Hub refuses, InputError when a
    file is not what was planned.

    Where the server refuses to copy, `say` hears why and the files are uploaded instead; CopyRefused when they are not here.
    `sent` are further operations of the same commit, whose files are on the Hub already.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    items = [i for i in plan.items if i.way != UNCHANGED]
    busy = (429,) if plan.create_pr else BUSY  # the same commit twice is one; a pull request whose answer was lost would be two
    try:
        patient(lambda: api.create_repo(plan.repo, private=plan.private, exist_ok=True), say=say)
        try:
            return patient(lambda: _commit(api, plan, items, sent), busy, say)
        except Exception as e:
            if not any(i.way == COPY for i in items) or not _refuses_copies(e):
                raise
            why = f"the Hub does not copy the weights of {plan.base.repo}: {(str(e) or type(e).__name__).splitlines()[-1].strip()}"
            if any(i.way == COPY and i.path is None for i in items):
                raise CopyRefused(why, "") from None
            say(f"{why}; they are uploaded")
            items = [replace(i, way=UPLOAD) if i.way == COPY else i for i in items]
            return patient(lambda: _commit(api, plan, items, sent), busy, say)
    except Exception as e:
        raise hub_error(plan.repo, e) from None


def _commit(api: HfApi, plan: Upload, items: list[Item], sent: Sequence[CommitOperationAdd]) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy

    plan.inputs.check()
    source: dict[str, Any] = {"src_revision": plan.base.commit, "src_repo_id": plan.base.repo, "src_repo_type": "model"}
    operations: list[CommitOperationAdd | CommitOperationCopy] = list(sent)
    operations += [
        CommitOperationCopy(i.name, i.name, **source)
        if i.way == COPY
        else CommitOperationAdd(i.name, i.data if i.data is not None else str(i.path))
        for i in items
    ]
    plan.inputs.check()  # each SHA-256 is taken now: the Hub refuses what is sent and differs
    tell(f"uploading to {plan.repo}")
    with without_bars():
        done = api.create_commit(
            plan.repo, operations, commit_message=f"Context extended to {plan.context:,} tokens with yarn-convert", revision=plan.revision,
            create_pr=plan.create_pr,
        )  # fmt: skip
    return str(done.pr_url or done.commit_url)


def _refuses_copies(e: Exception) -> bool:
    """Another region, no xet hash, a file that is gone, or a Hub that answers the request for copies with an error."""
    response = getattr(e, "response", None)
    if response is not None:
        return "/lfs-files/duplicate" in str(response.url)
    return type(e).__name__ in ("FileDuplicationError", "ValueError", "EntryNotFoundError")


def hub_error(repo: str, e: Exception) -> Exception:
    """One line for what the client raises; never with a token in it."""
    status: Any = getattr(answer_of(e), "status_code", None)
    if status in (401, 403):
        return OutputError(f"the Hub does not let you write to {repo} ({status})", "hf auth login, with a token that may write there")
    if isinstance(e, InputError | OutputError | UsageError):
        return e
    if status is not None:
        return OutputError(f"the Hub refuses {repo}: {status} {type(e).__name__}", "try again later; nothing is sent twice")
    return OutputError(f"could not reach the Hub for {repo}: {type(e).__name__}", f"{to_reach_it()}; nothing is sent twice")
