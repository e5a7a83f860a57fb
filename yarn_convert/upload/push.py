"""From the Hub to the Hub: a base whose weights stay is extended without downloading or sending any of them."""

from __future__ import annotations

import json
from typing import Any

from ..checkpoint import MANIFEST
from ..convert import Conversion, Options, convert, manifest_of, prepare
from ..errors import UsageError
from ..targets.moving import CopyFile, WriteBytes, bytes_of
from .card import README, local_card, render
from .hub import COPY, UPLOAD, CopyRefused, Item, Upload, check_repo, hub_error, plan_upload, run_upload, warnings_of


def push(
    model: str, options: Options, repo: str, revision: str | None = None, *, private: bool = False, unvalidated: bool = False,
    progress: bool = True,
) -> str:  # fmt: skip
    """Convert `model` and publish it: the whole of `yarn-convert MODEL … --push user/name`. Returns the commit's address.

    Where the weights of a base on the Hub stay as they are, they are copied there and never come here. Otherwise, and where
    the server refuses to copy, the model is converted on this machine first, to the usual place. Raises UsageError without
    `unvalidated`: nobody can have validated what is only made now.
    """
    check_repo(repo)
    if not unvalidated:
        hint = f"yarn-convert validate --twin {model}, then --allow-unvalidated; or convert, validate and upload one after the other"
        raise UsageError("--push publishes what was never validated", hint)
    conversion = prepare(model, options, revision, weights=False)
    if stays_there(conversion):
        plan = plan_push(conversion, repo, private)
        try:
            return run_upload(plan, progress)
        except CopyRefused:
            pass
    convert(model, options, revision)
    return run_upload(plan_upload(str(conversion.plan.out), repo, private=private, unvalidated=True), progress)


def stays_there(conversion: Conversion) -> bool:
    """Whether the output's weights are files that the base's repository has."""
    c, plan = conversion.checkpoint, conversion.plan
    return c.source.repo is not None and c.source.headers is not None and plan.is_folder and plan.identical


def plan_push(conversion: Conversion, repo: str, private: bool) -> Upload:
    """The upload of a conversion that was planned from headers alone."""
    c, plan = conversion.checkpoint, conversion.plan
    weights = _base_weights(str(c.source.repo), c.source.commit)
    manifest = manifest_of(conversion, {}, plan.out)
    manifest["weights"]["files"] = [
        {"file": name, "bytes": f.size, "how": "copied on the server", "sha256": f.lfs.sha256} for name, f in weights.items()
    ]
    text = render(c, manifest, repo, local_card(c.source.path))
    items = [Item(README, len(text.encode()), UPLOAD, data=text.encode())]
    for job in plan.jobs:
        if isinstance(job, CopyFile):
            items += [Item(job.name, job.size, UPLOAD, path=job.source)] if job.name != README else []
        else:
            items.append(Item(job.name, job.size, UPLOAD, data=job.data if isinstance(job, WriteBytes) else bytes_of(job)))
    data = (json.dumps(manifest, indent=2) + "\n").encode()
    items += [Item(MANIFEST, len(data), UPLOAD, data=data), *(Item(name, f.size, COPY) for name, f in weights.items())]
    base = manifest["base"]
    return Upload(repo, private, None, False, tuple(items), text, tuple(warnings_of(base)), base, plan.context)


def _base_weights(repo: str, commit: str | None) -> dict[str, Any]:
    from huggingface_hub import HfApi

    try:
        files = [f for f in HfApi().list_repo_tree(repo, revision=commit) if f.path.endswith(".safetensors") and "/" not in f.path]
    except Exception as e:
        raise hub_error(repo, e) from None
    return {f.path: f for f in files if getattr(f, "lfs", None)}
