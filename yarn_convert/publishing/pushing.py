"""From the Hub to the Hub: a base whose weights stay is extended without downloading or sending any of them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from ..checkpoint.hub_client import patient
from ..checkpoint.manifest import MANIFEST, Manifest, WeightFile, as_json, with_files
from ..checkpoint.source import Say, weight_files
from ..conversion import Conversion, prepare
from ..errors import InputError, UsageError, YarnConvertError
from ..formats.decoding import decoded
from ..formats.digests import sha256
from ..formats.general import README
from ..formats.json_text import pretty
from ..formats.layout import Part
from ..formats.tensors import INDEXES, read_safetensors
from ..hearing import tell, without_bars
from ..options import ConvertOptions, UploadOptions
from ..targets.moving import CopyFile, WriteBytes, WriteTensors, bytes_of
from ..targets.output import execute
from ..targets.safetensors import hf_piece, safetensors_job
from .hub import COPY, UPLOAD, CopyRefused, Item, Upload, ask_base, check_repo, hub_error, plan_upload, run_upload
from .model_card import local_card, render

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


def push(
    model: str, options: ConvertOptions, repo: str, *, private: bool = False, unvalidated: bool = False, say: Say = print,
) -> str:  # fmt: skip
    """Convert `model` and publish it: the whole of `yarn-convert MODEL … --push user/name`. Returns the commit's address.

    Where the weights of a base on the Hub stay as they are, they are copied there and never come here; where only their type
    changes, one file after the other comes, is converted, goes and is deleted. Otherwise, and where the server refuses to
    copy, the model is converted on this machine first, to the usual place. `say` gets a line now and then. Raises UsageError
    without `unvalidated`: nobody can have validated what is only made now.
    """
    conversion, plan = prepare_push(model, options, repo, private=private, unvalidated=unvalidated)
    for warning in plan.warnings if plan else ():
        say(f"warning    {warning}")
    return run_push(model, conversion, plan, repo, private, say)


def prepare_push(model: str, options: ConvertOptions, repo: str, *, private: bool, unvalidated: bool) -> tuple[Conversion, Upload | None]:
    """(what would be converted, and sent), None where the model has to be converted on this machine first. Raises as `push` does."""
    check_repo(repo)
    if "," in options.outtype:
        raise UsageError(f"--push of several types ({options.outtype}) goes with --validate", "or with one --outtype after the other")
    if not unvalidated:
        hint = "--validate proves it first, on this machine; --allow-unvalidated leaves that out"
        raise UsageError("--push publishes what was never validated", hint)
    try:
        conversion = prepare(model, options, weights=False)
    except InputError:  # pickled weights have no headers that could be read alone; anything else is raised again
        conversion = prepare(model, options)
    return conversion, plan_push(conversion, repo, private) if on_the_hub(conversion) else None


def run_push(model: str, conversion: Conversion, plan: Upload | None, repo: str, private: bool, say: Say) -> str:
    """Carry out what `prepare_push` has planned, and return the commit's address."""
    if plan:
        try:
            return run_upload(plan, say) if conversion.plan.identical else stream(conversion, plan, say)
        except CopyRefused as e:
            say(e.message)
    prepare(model, conversion.options).run(say)
    upload = plan_upload(str(conversion.plan.out), UploadOptions(repo, private=private, allow_unvalidated=True), say)
    for warning in () if plan else upload.warnings:
        say(f"warning    {warning}")
    return run_upload(upload, say)


def on_the_hub(conversion: Conversion) -> bool:
    """Whether the output's weights can be made from the base's files in its repository, one after the other."""
    c = conversion.checkpoint
    return c.source.repo is not None and not c.source.has_weights and c.gguf is None and conversion.plan.is_folder


def plan_push(conversion: Conversion, repo: str, private: bool) -> Upload:
    """The upload of a conversion that was planned from headers alone; without weights where they are going to change."""
    c, plan = conversion.checkpoint, conversion.plan
    weights = _base_weights(str(c.source.repo), c.source.commit) if plan.identical else {}
    manifest = replace(conversion, options=replace(conversion.options, hash=False)).manifest({}, plan.out)
    manifest = with_files(
        manifest,
        [_copied(name, f) for name, f in weights.items()],
    )
    base_card, warnings = ask_base(manifest.base)
    text = render(c, manifest, repo, local_card(c.source.path), base_card)
    items = [Item(README, len(text.encode()), UPLOAD, data=text.encode())]
    for job in plan.jobs:
        if isinstance(job, CopyFile):
            items += [Item(job.name, job.size, UPLOAD, path=job.source)] if job.name != README else []
        elif plan.identical or not job.name.startswith("model"):
            items.append(Item(job.name, job.size, UPLOAD, data=job.data if isinstance(job, WriteBytes) else bytes_of(job)))
    data = pretty(as_json(manifest))
    items.append(Item(MANIFEST, len(data), UPLOAD, data=data))
    items += [Item(name, f.size, COPY) for name, f in weights.items()]
    return Upload(repo, private, None, False, tuple(items), text, tuple(warnings), manifest.base, plan.context)


def _copied(name: str, f: RepoFile) -> WeightFile:
    return WeightFile(name, f.size, "copied on the server", sha256_of_hub=f.lfs.sha256 if f.lfs else UNSET)


def _base_weights(repo: str, commit: str | None) -> dict[str, RepoFile]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = patient(lambda: list(HfApi().list_repo_tree(repo, revision=commit)))
    except Exception as e:
        raise hub_error(repo, e) from None
    files = {f.path: f for f in tree if isinstance(f, RepoFile) and f.lfs}
    return {name: files[name] for name in weight_files(files, repo)}


def stream(conversion: Conversion, plan: Upload, say: Say) -> str:
    """Download, convert and upload the base's weight files one at a time, then commit all; the disk holds one of them.

    Interrupted and run again, nothing that the Hub has is sent twice.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api, c = HfApi(), conversion.checkpoint
    weights = _base_weights(str(c.source.repo), c.source.commit)
    made, operations, weight_map = list[WeightFile](), list[CommitOperationAdd](), dict[str, str]()
    try:
        patient(lambda: api.create_repo(plan.repo, private=plan.private, exist_ok=True), say=say)
        for i, name in enumerate(weights):
            say(f"{name}: {i + 1} of {len(weights)}")
            tell(f"{name}, from the Hub to the Hub", i / len(weights))
            with tempfile.TemporaryDirectory(prefix="yarn-convert-") as folder, without_bars():
                fetch = partial(api.hf_hub_download, str(c.source.repo), name, revision=c.source.commit, local_dir=folder)
                source = Path(patient(fetch, say=say))
                tensors, _ = read_safetensors(source)
                job = safetensors_job(name, [hf_piece(n, Part(t.shape, (t,)), conversion.plan.outtype) for n, t in tensors.items()])
                out = Path(folder, "out")
                execute([job], out, folder=True)
                made.append(WeightFile(name, job.size, "written", sha256(out / name)))
                weight_map |= dict.fromkeys(tensors, name)
                operations.append(CommitOperationAdd(name, str(out / name)))
                patient(partial(api.preupload_lfs_files, plan.repo, operations[-1:]), say=say)
    except YarnConvertError:
        raise
    except Exception as e:
        raise hub_error(plan.repo, e) from None
    small = {i.name: i for i in plan.items}
    planned = decoded(json.loads(small[MANIFEST].data or b""), Manifest, MANIFEST)
    made_now: dict[str, Any] = {MANIFEST: as_json(with_files(planned, made))}
    if len(weights) > 1:
        total = sum(t.target.nbytes for job in conversion.plan.jobs if isinstance(job, WriteTensors) for t, _ in job.pieces)
        made_now[INDEXES[0]] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for name, value in made_now.items():
        data = pretty(value)
        small[name] = Item(name, len(data), UPLOAD, data=data)
    return run_upload(replace(plan, items=tuple(small.values())), say, operations)
