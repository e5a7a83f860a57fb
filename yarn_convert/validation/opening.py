"""What a validation opens: the model and its base. Of one on the Hub the headers come first, and where the memory does not hold the whole
no more than a cut of its weights follows."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.hub_client import file_in_cache
from ..checkpoint.source import resolve
from ..compute.reference import pick_device
from ..errors import Unsupported
from ..options import ValidateOptions
from .cuts import share_of
from .real import LAYERS, layers_to_cut


def described(model: str, revision: str | None, weights: bool) -> Checkpoint:
    """A model; of one on the Hub no weights but the headers, where it has such. Without `weights` a config.json alone will do."""
    source = resolve(model, revision, weights=False)
    if weights and source.has_weights == bool(source.repo):
        source = resolve(model, revision)
    return open_checkpoint(source)


def with_weights(c: Checkpoint, model: str, revision: str | None) -> Checkpoint:
    """`c`, which `described` made of `model`, with all of its weights."""
    return c if c.source.has_weights else open_checkpoint(resolve(model, revision))


def as_memory_allows(
    c: Checkpoint, base: Checkpoint | None, named: Checkpoint | None, settings: ValidateOptions
) -> tuple[ValidateOptions, str]:
    """(the settings, with a cut where the memory does not hold what would have to be fetched and nobody said what to run, and a line that
    says so). `named` as in `layers_to_cut`."""
    far = [(one, one is base) for one in (c, base) if one is not None and _is_to_be_fetched(one)]
    if settings.cut is not None or not settings.real or named is None or not far:
        return settings, ""
    layers = layers_to_cut(c, named, settings, pick_device(settings.device))
    if not layers:
        return settings, ""
    found = []
    for one, alone in far:
        with contextlib.suppress(Unsupported):  # a base whose tensors are not known: the study says that there is none
            names = share_of(one, layers, alone)
            part, whole = (sum(t.nbytes for t in tensors) for tensors in ((one.tensors[name] for name in names), one.tensors.values()))
            found.append(f"{part / 1e9:.2f} of {whole / 1e9:.2f} GB of {one.source.repo}")
    what = f"fetched   a cut alone, for the memory does not hold the whole: {', '.join(found)}; --cut 0 fetches and runs all of it"
    return replace(settings, cut=LAYERS), what


def _is_to_be_fetched(c: Checkpoint) -> bool:
    """Whether the headers alone are here, and weights are not in the Hub's cache, either."""
    s = c.source
    return s.repo is not None and any(file_in_cache(s.repo, name, s.commit) is None for name in {*s.shards.values()})
