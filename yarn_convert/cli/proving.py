"""A conversion whose outputs are proved, and then published: what --validate and --push do together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, need
from ..options import ConvertOptions, UploadOptions, ValidateOptions
from .progress import progress
from .show import Talk

if TYPE_CHECKING:
    from ..checkpoint.source import Say
    from ..conversion import Conversion, Converted

NOT_PASSED = 3  # exit code of a validation that failed or proves nothing


def check_can_prove(o: ConvertOptions) -> None:
    """Raise UsageError, before anything is made, where the base is gone when the output is there, or a package is missing."""
    if o.in_place:
        raise UsageError("--validate compares with the base, which --in-place changes", "leave out --in-place")
    if o.stream:
        raise UsageError(
            "--validate compares with the base's files, which --stream leaves on the Hub", "validate it afterwards, with --cut"
        )
    need("validate", "a validation")


def proved(conversions: Sequence[Conversion], done: Converted, talk: Talk) -> tuple[bool, Converted]:
    """(whether every output passed against the very files it was made of, `done` with what is now on record)."""
    from .. import validation
    from ..checkpoint.manifest import read_manifest

    passed, found = True, []
    for c, one in zip(conversions, (done, *done.others), strict=True):
        base = ValidateOptions(base=str(c.origin or c.checkpoint.source.path))
        with progress(talk.quiet):
            result = validation.check(str(one.output), base, talk.line)
        talk.lines(shown(result, talk.quiet))
        passed = passed and result["verdict"] == "passed"
        found.append(replace(one, manifest=read_manifest(one.output) or one.manifest, others=()))
    return passed, replace(found[0], others=tuple(found[1:]))


def shown(result: dict[str, Any], quiet: bool) -> list[str]:
    """A validation's lines for people."""
    from ..validation import lines
    from ..validation.result import validated

    return list(lines(validated(result), quiet))


def publish(done: Converted, repo: str, private: bool, say: Say) -> list[str]:
    """The addresses of the commits, one for each output: each leaves the repository's card true."""
    from ..publishing import plan_upload, run_upload

    urls = []
    for one in (done, *done.others):
        plan = plan_upload(str(one.output), UploadOptions(repo, private=private), say)
        for warning in plan.warnings:
            say(f"warning    {warning}")
        urls.append(run_upload(plan, say))
    return urls
