"""The Hub, asked through its own client: again while it is busy, some bytes of a file, and each of its errors in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import InputError, Unreachable
from ..hearing import HEARS, tell
from .naming import HUB_ID

TIMEOUT = 60.0  # seconds without a byte
BUSY = (429, 500, 502, 503, 504)
PATIENCE = 60.0  # seconds in which a busy Hub is asked again
T = TypeVar("T")


class Blob(NamedTuple):
    """A file on the Hub: its size, and the SHA-256 of a large one, "" of one that git keeps."""

    size: int
    sha256: str


def is_repo(name: str) -> bool:
    """Whether the Hub's client takes `name`, as org/name, for a repository's."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with contextlib.suppress(HFValidationError):
        validate_repo_id(name)
        return bool(HUB_ID.fullmatch(name))
    return False


def file_in_cache(repo: str, name: str, commit: str | None) -> Path | None:
    """A file of a commit, where the Hub's cache has it."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=commit)
    return Path(found) if isinstance(found, str) else None


def byte_range(repo: str, name: str, commit: str | None, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file on the Hub. Raises as `ranged`."""
    return ranged(*address(repo, name, commit), f"{name} of {repo}", start, stop)[0]


def address(repo: str, name: str, commit: str | None) -> tuple[str, dict[str, str]]:
    """(where the Hub has a file, what is said to be given it)."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return hf_hub_url(repo, name, revision=commit), build_hf_headers()


def ranged(url: str, headers: Mapping[str, str], what: str, start: int, stop: int, blob: Blob | None = None) -> tuple[bytes, str]:
    """(bytes [start, stop) of what has this address, the address to which that led). InputError for another answer than these, or of
    another file than `blob`, Unreachable for fewer; else what the client raises."""
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

    def answered() -> Any:
        asked = {**headers, "Range": f"bytes={start}-{stop - 1}"}
        answer = get_session().get(url, headers=asked, follow_redirects=True, timeout=TIMEOUT)
        hf_raise_for_status(answer)
        return answer

    answer = patient(answered)
    data: bytes = answer.content
    if answer.status_code != 206 or len(data) != stop - start:
        error = Unreachable if answer.status_code == 206 else InputError
        raise error(f"could not get {what}: {len(data):,} bytes came instead of {stop - start:,}", "try again")
    if blob:
        _check_same(answer, start, stop, blob, what)
    return data, str(answer.url)


def _check_same(answer: Any, start: int, stop: int, blob: Blob, what: str) -> None:
    """InputError where an answer has a range of something else than `blob`; the Hub's own tells the hash, a redirection's end the range."""
    told = [a.headers.get("X-Linked-Etag", "").strip('"') for a in (*answer.history, answer)]
    other = next((etag for etag in told if etag and blob.sha256 and etag != blob.sha256), "")
    if other or answer.headers.get("Content-Range") != f"bytes {start}-{stop - 1}/{blob.size}":
        raise InputError(f"{what} on the Hub is not what it was when this began", "nothing was written: run the same command again")


def _tell_or_log(line: str) -> None:
    """To the log where nobody hears: on stderr, if nothing else is set up."""
    (tell if HEARS.get() else logging.getLogger(__name__).warning)(line)


def patient(call: Callable[[], T], busy: Container[int] = BUSY, say: Callable[[str], None] = _tell_or_log) -> T:
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
    if kind == "OfflineModeIsEnabled":
        return InputError(f"{repo} is not whole in the Hub's cache, and nothing may be fetched", f"{to_reach_it()}, or give a local folder")
    if isinstance(e, OSError) and type(e).__module__ == "builtins" and not isinstance(e, ConnectionError | TimeoutError):
        why = os.strerror(e.errno) if e.errno else str(e)
        return InputError(f"could not write {repo} to the Hub's cache: {why}", "free some space there, or set HF_HOME to another folder")
    if kind == "GatedRepoError":
        return InputError(f"{repo} is gated", f"accept its licence on the Hub, then log in: hf auth login ({repo})")
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError") or status in (401, 404):
        return InputError(
            f"{repo} or its revision does not exist on the Hub, or is private", "check the spelling, or log in: hf auth login"
        )
    if status in BUSY:
        return InputError(f"could not get {repo} from the Hub: it answers {status}", "it is busy: try again later; the download resumes")
    return InputError(f"could not get {repo} from the Hub: {kind}", f"{to_reach_it()}; the download resumes, or give a local folder")


def to_reach_it() -> str:
    """What to do where the Hub gave no answer, or its client was told not to ask."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return "check the network and try again"
    asked = next((name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), "HF_HUB_OFFLINE")
    return f"{asked} is set: unset it and try again"
