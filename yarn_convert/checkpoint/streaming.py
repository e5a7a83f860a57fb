"""A model whose weight files stay on the Hub: its tensors are read by range while they are written, and no copy of it lies here."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import InputError, Unreachable, UsageError, YarnConvertError
from ..formats.inputs import notice, noticing
from ..formats.split import read_model
from ..formats.tensors import INDEXES, Bytes, Tensor, read_folder
from .hub_client import BUSY, PATIENCE, Blob, address, answer_of, file_in_cache, hub_error, ranged
from .source import Source, hf_header, scratch_of, weight_files

PIECE = 8 << 20  # bytes of one request: the Hub counts requests
AHEAD = 2  # pieces of a tensor that are asked for before they are wanted
AT_ONCE = 8  # requests side by side


class Window:
    """The pieces of a model's files that were read last, and those that come: two outputs of one tensor read it once. From any thread."""

    def __init__(self) -> None:
        self.most = 2 * min(32, os.cpu_count() or 1) + AT_ONCE  # pieces: each thread of a quantization has one or two
        self.places: dict[str, str] = {}  # where the Hub led to for a file
        self.kept: OrderedDict[tuple[str, int, int], Future[bytes]] = OrderedDict()
        self.waiting: deque[tuple[Future[bytes], HubFile, int, int]] = deque()
        self.asking = 0  # threads
        self.lock, self.stopped = threading.Lock(), threading.Event()

    def piece(self, file: HubFile, start: int, end: int) -> bytes:
        """The piece of a tensor that begins there; those behind it, up to the `end` of the tensor, are asked for."""
        with self.lock:
            for at in reversed(range(start, min(end, start + (1 + AHEAD) * PIECE), PIECE)):
                key = (file.name, at, min(at + PIECE, end))
                if key not in self.kept:
                    self.kept[key] = self._submitted(file, *key[1:])
                self.kept.move_to_end(key)
            wanted = self.kept[key]
            for old in [key for key, found in self.kept.items() if found.done()][: max(0, len(self.kept) - self.most)]:
                del self.kept[old]
        while not wait([wanted], 0.2).done:
            if self.stopped.is_set():
                raise Unreachable(f"{file.name} was not read to its end")
        return wanted.result()

    def _submitted(self, file: HubFile, start: int, stop: int) -> Future[bytes]:
        """What a thread will have read. Python's end waits for a ThreadPoolExecutor's threads, and so for an answer of the Hub that nobody
        wants any more; for these it does not. Called under the lock."""
        found = Future[bytes]()
        self.waiting.append((found, file, start, stop))
        if self.asking < AT_ONCE:
            self.asking += 1
            threading.Thread(target=self._work, name="range", daemon=True).start()
        return found

    def _work(self) -> None:
        while True:
            with self.lock:
                if not self.waiting or self.stopped.is_set():
                    self.asking -= 1
                    return
                found, file, start, stop = self.waiting.popleft()
            try:
                found.set_result(self._fetched(file, start, stop))
            except BaseException as e:
                found.set_exception(e)

    def _fetched(self, file: HubFile, start: int, stop: int) -> bytes:
        """Bytes of a file on the Hub. Where a connection breaks they are asked for again, for about a minute. Raises Unreachable then, and
        InputError where the file is not what it was, or is not given."""
        end, pause = time.monotonic() + PATIENCE, 1.0
        error: YarnConvertError
        while True:
            try:
                return self._asked(file, start, stop)
            except YarnConvertError as e:
                error = e
            except Exception as e:  # the client, its HTTP library and the system each have their own
                error, answer = hub_error(file.repo, e), answer_of(e)
                if answer is None or answer.status_code in BUSY:
                    error = Unreachable(error.message, "check the network")
            if not isinstance(error, Unreachable) or time.monotonic() + pause > end or self.stopped.wait(pause):
                raise error from None
            pause = min(2 * pause, 16)

    def _asked(self, file: HubFile, start: int, stop: int) -> bytes:
        """The same, once. The Hub, which counts what it is asked, leads large files to a server of its own for about an hour: what follows
        is asked there, without the user's token."""
        what, known = f"{file.name} of {file.repo}", self.places.get(file.name)
        if known:
            try:
                return ranged(known, {}, what, start, stop, file.blob)[0]
            except Exception:  # the hour is over, or that server is down
                self.places.pop(file.name, None)
        url, headers = address(file.repo, file.name, file.commit)
        data, place = ranged(url, headers, what, start, stop, file.blob)
        if place != url:
            self.places[file.name] = place
        return data


@dataclass(frozen=True, slots=True)
class HubFile:
    """A weight file of a commit, whose tensors are read through `window`."""

    repo: str
    name: str
    commit: str
    blob: Blob
    window: Window = field(compare=False, repr=False)

    def read(self, at: int, size: int, within: tuple[int, int]) -> Bytes:
        """Bytes [at, at+size) of the file, uint8; they lie in a tensor that has the bytes `within`."""
        out, done, (first, end) = np.empty(size, np.uint8), 0, within
        while done < size:
            start = at + done - (at + done - first) % PIECE
            piece = np.frombuffer(self.window.piece(self, start, end), np.uint8)[at + done - start :]
            n = min(len(piece), size - done)
            out[done : done + n] = piece[:n]
            done += n
        return out

    def stop(self) -> None:
        """Nobody wants any more of it."""
        self.window.stopped.set()


def streamed(source: Source) -> Source:
    """`source`, as `resolve` gives it to be streamed, with tensors that are read from the Hub, or where its cache has their file from it.

    Raises UsageError for a model on this machine; InputError for one without safetensors or GGUF, or as opening one does.
    """
    if source.repo is None:
        raise UsageError(f"--stream reads the weights from the Hub, and {source.name} is on this machine", "leave it out")
    if not source.blobs:  # without a network: what its cache has
        return source
    with noticing():  # headers in a place of this process alone are no inputs that could change
        found = _gguf_tensors(source) if source.is_gguf else _folder_tensors(source)
    return replace(source, headers=_elsewhere(source, found), streamed=True)


def _gguf_tensors(source: Source) -> Mapping[str, Tensor]:
    return read_model(source.path).tensors


def _folder_tensors(source: Source) -> Mapping[str, Tensor]:
    """The tensors of a folder as they are read when it is here, of files that are holes but for their headers."""
    assert source.repo is not None and source.commit is not None
    names = weight_files(source.blobs, source.repo)
    if any(not name.endswith(".safetensors") for name in names):
        raise InputError(f"{source.repo} has its weights in pickles, which are not read by range", "leave out --stream")
    folder = scratch_of(source.repo, source.commit)
    folder.mkdir(parents=True, exist_ok=True)
    for name in INDEXES:
        if (source.path / name).is_file():
            shutil.copy(source.path / name, folder / name)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: hf_header(source, name, folder / name), names))
    return read_folder(folder)[0]


def _elsewhere(source: Source, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, of files that have headers alone, each where its bytes are."""
    assert source.repo is not None and source.commit is not None
    window, homes = Window(), dict[str, HubFile]()
    here = {name: file_in_cache(source.repo, name, source.commit) for name in source.blobs}
    root, found = scratch_of(source.repo, source.commit), dict[str, Tensor]()
    for t in tensors.values():
        assert t.path is not None
        name = t.path.relative_to(root).as_posix()
        if whole := here[name]:
            notice(whole)
            found[t.name] = replace(t, path=whole)
            continue
        home = homes.setdefault(name, HubFile(source.repo, name, source.commit, source.blobs[name], window))
        found[t.name] = replace(t, path=None, remote=home)
    return found
