"""The steps of a training: gradients of a batch, an optimizer, what is measured on the way, and where it can be gone on from.

AdamW, linear warm-up and then a constant rate (YaRN, arXiv 2309.00071, Section 4.1). The gradient of a step is that of the mean loss over
all tokens that the batch predicts, however many ranks share it and in however many passes: each pass adds its sum of losses, divided by
the batch's tokens.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..compute.reference import enough_memory
from ..errors import InputError, OutputError, many
from ..hearing import SayMore
from ..rope import Rope, effect
from . import states
from .corpus import Order, Segment, Segments, share
from .ranks import Ranks
from .settings import BETAS, Settings
from .speed import Speed, memory
from .trainee import TRIED, Part, Trainee

GUESSING = 0.9  # of ln(vocabulary): SmolLM2 reaches 0.91 on the ids of a text by another tokenizer, and 0.26 on those of its own


@dataclass(frozen=True, slots=True)
class TrainingTexts:
    """What is trained on, in which order, and what is held out."""

    segments: Segments
    order: Order
    held_out: Segments

    @property
    def kept(self) -> Sequence[int]:
        """The held-out segments."""
        return self.order.held_out() if self.held_out is self.segments else range(min(8, len(self.held_out)))


@dataclass
class History:
    """What a log has: of each step its numbers, and the perplexities of held-out texts by window."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        (self.held_out if "windows" in line else self.steps).append(line)


class Log:
    """One line of JSON for each step and each measure; only the first rank's is a file."""

    def __init__(self, path: Path | None, after: int) -> None:
        """`after`: the step that is gone on from; what the file says of later ones is dropped."""
        self.path, self.history = path, History()
        if path is None:
            return
        lines = [json.loads(x) for x in path.read_text("utf-8").splitlines() if x] if after and path.exists() else []
        for line in lines:
            if line["step"] <= after:
                self.history.add(line)
        self._write("w", *self.history.steps, *self.history.held_out)

    def add(self, line: dict[str, Any]) -> None:
        self.history.add(line)
        if self.path is not None:
            self._write("a", line)

    def _write(self, mode: str, *lines: dict[str, Any]) -> None:
        assert self.path is not None
        try:
            with self.path.open(mode, encoding="utf-8") as f:
                f.writelines(json.dumps(line) + "\n" for line in sorted(lines, key=lambda x: x["step"]))
        except OSError as e:
            raise OutputError(f"could not write {self.path}: {e.strerror}", "free some space; the same command goes on") from None


def optimizer_of(trainee: Trainee, s: Settings) -> Any:
    """AdamW over what is trained; fused, or it would hold a root of each second moment at once."""
    import torch

    trained = [p for p in trainee.module.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=s.lr, betas=BETAS, weight_decay=0.0, fused=True)


class Training:
    """A trainee, its optimizer, and how far it is."""

    def __init__(self, trainee: Trainee, s: Settings, texts: TrainingTexts, folder: Path, log: Path | None, say: SayMore) -> None:
        """Goes on with the state in `folder` where there is one."""
        self.trainee, self.s, self.texts, self.folder, self.say = trainee, s, texts, folder, say
        self.ranks: Ranks = trainee.ranks
        self.passes = s.passes(self.ranks.copies)
        self.optimizer = optimizer_of(trainee, s)
        self.begun = self.ranks.together(lambda: states.latest(folder)) or 0
        if self.begun:
            states.load(folder, self.begun, trainee.module, self.optimizer)
        self.log = Log(log if self.ranks.first else None, self.begun)
        self.speed = Speed(trainee.c, s, self.ranks.device, self.ranks.world)

    def run(self) -> History:
        """All steps that are left. KeyboardInterrupt when the user stops it: its state is kept then."""
        s = self.s
        self._serve(s.rope, max(s.sequence, TRIED * self.ranks.parallel))
        self.ranks.together(self.trainee.check_attention)
        self._serve(s.rope, s.sequence)
        self.ranks.together(lambda: self.trainee.check_table(effect(s.rope, s.sequence), s.sequence))
        if not self.begun:
            self._measure(0)
        with stopping() as stopped:
            for step in range(self.begun, s.steps):
                line = self._step(step, stopped)
                if line is None:
                    self._keep(step)
                    raise KeyboardInterrupt
                self.log.add(line)
                done = step + 1
                if done == s.steps or (s.evaluate_every and done % s.evaluate_every == 0):
                    self._measure(done)
                if done == s.steps or done % s.checkpoint_every == 0:
                    self._keep(done)
        return self.log.history

    def _serve(self, rope: Rope, n: int) -> None:
        self.trainee.serve(effect(rope, n), n)

    def _keep(self, step: int) -> None:
        if step > max(self.begun, states.latest(self.folder)):
            states.save(self.folder, step, self.trainee.module, self.optimizer, self.ranks)

    def _step(self, step: int, stopped: threading.Event) -> dict[str, Any] | None:
        """What the log says of a step; None where the user has stopped it: then nothing has changed."""
        import torch

        s, begin = self.s, time.perf_counter()
        total, loss = self._predicted(step), 0.0
        for i in range(self.passes):
            self.say("training", (step + i / self.passes) / s.steps, self.speed.told(step, self.log.history.steps))
            with enough_memory(s.sequence), torch.enable_grad():  # a notebook may have turned gradients off
                found = self.trainee.loss(self._part(step, i))
                (found * (self.ranks.world / total)).backward()  # FSDP takes the mean over ranks
            loss += float(found.detach())
            if self.ranks.sums(stopped.is_set())[0]:
                self.optimizer.zero_grad()
                return None
        (loss,) = self.ranks.sums(loss / total)
        self._check_loss(step, loss)
        limit = s.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], limit)
        for group in self.optimizer.param_groups:
            group["lr"] = s.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        seconds = time.perf_counter() - begin
        done = {
            "step": step + 1,
            "loss": loss,
            "lr": s.rate(step),
            "gradient_norm": float(norm),
            "tokens": (step + 1) * s.batch * s.sequence,
        }
        return done | {"seconds": seconds, **self.speed.of(seconds), "memory": memory(self.ranks.device)}

    def _check_loss(self, step: int, loss: float) -> None:
        vocabulary = self.trainee.net.config.get_text_config().vocab_size
        if not math.isfinite(loss):
            raise InputError(f"the loss of step {step + 1} is not a number", "a smaller --lr, or f32 for --dtype")
        if step == 0 and self.texts.segments.corpus.given and loss > GUESSING * math.log(vocabulary):
            raise InputError(
                f"the model has a loss of {loss:.2f} nats on these tokens, and guessing one of {math.log(vocabulary):.2f}: "
                "they are another tokenizer's",
                "texts instead of tokens",
            )

    def _chosen(self, step: int, i: int) -> list[int]:
        """The segments of this rank's i-th pass in a step."""
        s, first = self.s, (i * self.ranks.copies + self.ranks.copy) * self.s.micro_batch
        return [self.texts.order.at(step * s.batch + first + k) for k in range(s.micro_batch)]

    def _part(self, step: int, i: int) -> Part:
        return self._given([self.texts.segments[k] for k in self._chosen(step, i)])

    def _given(self, segments: Sequence[Segment]) -> Part:
        import torch

        *arrays, documents = share(segments, self.ranks.part, self.ranks.parallel)
        ids, positions, targets = (torch.from_numpy(np.ascontiguousarray(a)).to(self.ranks.device) for a in arrays)
        return Part(ids, positions, targets, documents)

    def _predicted(self, step: int) -> float:
        """Tokens that a batch predicts, over all ranks."""
        if not self.s.pack:
            return float(self.s.batch * (self.s.sequence - 1))
        mine = sum(int((self.texts.segments[k].targets >= 0).sum()) for i in range(self.passes) for k in self._chosen(step, i))
        return self.ranks.sums(mine / self.ranks.parallel)[0]

    # -- held-out texts -----------------------------------------------------------------------------------------------

    def _measure(self, step: int) -> None:
        """Perplexity of the held-out segments, each truncated at each window."""
        if self.texts.kept:
            self.say(f"perplexity of {many(len(self.texts.kept), 'held-out segment')}", step / self.s.steps)
            self.log.add({"step": step, "windows": self._perplexities()})
            self._serve(self.s.rope, self.s.sequence)

    def _perplexities(self) -> dict[str, dict[str, float]]:
        s, kept = self.s, list(self.texts.kept)
        lengths = (s.sequence,) if s.rope.static else s.windows  # under a static table a shorter text is the beginning of a longer one
        sums = np.zeros((len(s.windows), 2))
        for n in lengths:
            self._serve(s.rope, n)
            for i in range(0, len(kept), self.ranks.copies):
                mine = i + self.ranks.copy
                counted = [w for w in s.windows if s.rope.static or w == n] if mine < len(kept) else []
                for w, found in self._losses(kept[min(mine, len(kept) - 1)], n, counted).items():
                    sums[s.windows.index(w)] += found
        totals = np.reshape(self.ranks.sums(*sums.ravel()), sums.shape)
        return {str(w): {"perplexity": math.exp(min(700.0, a / b)), "tokens": b} for w, (a, b) in zip(s.windows, totals, strict=True) if b}

    def _losses(self, k: int, n: int, windows: Sequence[int]) -> dict[int, tuple[float, float]]:
        """window -> (sum of losses, tokens) of this rank's part of a held-out segment, cut to `n` tokens."""
        part = self._given([self.texts.held_out[k].cut(n)])
        (losses,) = self.trainee.losses(part)
        first = self.ranks.part * len(losses)
        at, counts = first + np.arange(len(losses)), part.targets[0].cpu().numpy() >= 0
        inside = {w: counts & (at + 1 < w) for w in windows}
        return {w: (float(losses[m].sum()), float(m.sum())) for w, m in inside.items()}


@contextlib.contextmanager
def stopping() -> Iterator[threading.Event]:
    """Set by Ctrl-C or a cluster's SIGTERM, once; a second one is as everywhere."""
    event = threading.Event()
    kept: dict[int, Any] = {}

    def stop(number: int, frame: object) -> None:
        event.set()
        for number, old in kept.items():
            signal.signal(number, old)

    if threading.current_thread() is threading.main_thread():
        kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, old in kept.items():
            signal.signal(number, old)
