"""RULER (Hsieh et al., arXiv 2404.06654) as lm-evaluation-harness has it: retrieval, tracing and aggregation in made texts, by length.

The harness's own code makes the texts, joins them to prompts and scores what is said (its tasks' `process_results`: string match of all
answers, or of any); the greedy answers come from the loaded model under each recipe. Its generators are asked for as few texts as there
are trials, task by task and length by length, from the harness's own seeds: the first ones of `lm_eval --tasks TASK` at that length.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..compute.documents import bos
from ..compute.tokens import ends, tokenizer_of
from ..errors import InputError, UsageError, need, no_such
from ..hearing import SayStage, heard, tell
from ..options import RulerOptions
from .journal import ResultJournal
from .retrieval import Asked, answers, as_ids
from .subjects import Line, Meter, Subject, check_torch, lines_of, spread

ROOM = "lm_eval.tasks.ruler"
SEEDS = (0, 1234)  # of random and numpy, the harness's own
ESSAYS = "the data set baber/paul_graham_essays and NLTK's punkt_tab"


@dataclass(frozen=True, slots=True)
class Task:
    """A task of the harness: its YAML file, its module, the `maker` of texts there, and what it downloads, "" for nothing."""

    file: str
    module: str
    maker: str = "generate_samples"
    downloads: str = ""


TASKS: Mapping[str, Task] = {
    **{f"niah_{n}": Task(f"niah_{n}", "niah_utils") for n in ("single_1", "multikey_2", "multikey_3")},
    **{
        f"niah_{n}": Task(f"niah_{n}", "niah_utils", downloads=ESSAYS)
        for n in ("single_2", "single_3", "multikey_1", "multivalue", "multiquery")
    },
    "ruler_vt": Task("vt", "vt_utils", "sys_vartrack_w_noise_random"),
    "ruler_cwe": Task("cwe", "cwe_utils", "sys_word_pair_random"),
    "ruler_fwe": Task("fwe", "fwe_utils", "sys_kwext"),
    "ruler_qa_squad": Task("qa_squad", "qa_utils", downloads="SQuAD"),
    "ruler_qa_hotpot": Task("qa_hotpot", "qa_utils", downloads="HotpotQA"),
}
# The harness makes a text shorter until it fits, and of some tasks without an end: (calls of the module's generate_input_output that must
# fit with tokens to spare, the tokens of the answer, the tokens for it where they are not the wished length).
LEAST: Mapping[str, tuple[tuple[dict[str, Any], int, int | None], ...]] = {
    "ruler_vt": (
        ({"num_noises": 5, "num_chains": 1, "num_hops": 4, "is_icl": True}, 30, 500),
        ({"num_noises": 10, "num_chains": 1, "num_hops": 4}, 30 + 500, None),
    ),
    "ruler_cwe": (({"num_words": 20}, 120, None),),
    "ruler_fwe": (),
}
SPARE = 1.1


class Prompt(NamedTuple):
    """One prompt of a task at a length, and the harness's document and task, which score it."""

    task: str
    length: int
    ids: Any
    most: int
    doc: Mapping[str, Any]
    scores: Any


def chosen(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the tasks to run, those left out with what they download). UsageError for a name that there is not."""
    for name in names:
        if name not in TASKS:
            raise no_such("task", name, TASKS)
    if names:
        return list(dict.fromkeys(names)), []
    return [n for n, t in TASKS.items() if not t.downloads], [f"{n}: downloads {t.downloads}" for n, t in TASKS.items() if t.downloads]


@heard
def measure_ruler(say: SayStage, models: Sequence[str], wish: RulerOptions, journal: ResultJournal) -> dict[str, Any]:
    """Measure all recipes of all models; the result is JSON."""
    need("ruler", "RULER")
    s, (tasks, left_out) = wish.settings, chosen(wish.tasks)
    check_torch(s)
    lengths = tuple(sorted(set(wish.lengths)))
    subjects = [(subject, lines_of(subject.c, s)) for subject in (Subject(m, s, journal) for m in models)]
    rows, described = [], []
    for (subject, lines), told in zip(subjects, spread(say, subjects), strict=True):
        tokenizer = tokenizer_of(subject.c)
        subject.lead = bos(subject.c)
        with _folder(tokenizer) as folder:
            prompts = []
            for i, (name, n) in enumerate(cells := list(product(tasks, lengths))):
                tell(f"RULER's texts for {subject.name}", i / len(cells))
                prompts += _prompts(name, n, wish, folder, tokenizer, subject.lead)
        meter = Meter(f"RULER of {subject.name}", [len(p.ids) for _ in lines for p in prompts], told)
        found = []
        for line in lines:
            trials = _trials(subject, line, prompts, tokenizer, meter)
            points = [_point(trials, name, n) for name in tasks for n in lengths]
            means = [{"length": n, "score": float(np.mean([p["score"] for p in points if p["length"] == n]))} for n in lengths]
            reached = effective(means, wish.threshold)
            found.append({**subject.row(line), "points": points, "by_length": means, "trials": trials, "effective": reached})
        own = _own(found)
        for row in found:
            reach = None if own is None else effective(row["by_length"], own)
            rows.append({**row, "threshold_of_base": own, "effective_by_base": reach})
        described.append(subject.described())
        subject.release()
    return {
        "measure": "ruler", "lengths": lengths, "tasks": tasks, "left_out": left_out, "trials": wish.trials, "threshold": wish.threshold,
        "models": described, "rows": rows,
    }  # fmt: skip


def _trials(subject: Subject, line: Line, prompts: Sequence[Prompt], tokenizer: Any, meter: Meter) -> list[dict[str, Any]]:
    """What a recipe says to each prompt, and its score. Prompts that begin alike are answered one after the other."""
    eos, found = ends(subject.c), []
    turn = sorted(prompts, key=lambda p: p.ids.tolist())
    for most in dict.fromkeys(p.most for p in prompts):
        some = [p for p in turn if p.most == most]
        asked = [Asked(p.ids, i, []) for i, p in enumerate(some)]
        said = answers(subject, line, asked, f"ruler {sorted(eos)}", most, lambda ids: ids[-1] in eos, meter)
        found += [(p, tokenizer.decode(ids)) for p, ids in zip(some, said, strict=True)]
    said_to = {id(p): text for p, text in found}
    return [_trial(p, said_to[id(p)]) for p in prompts]


def effective(means: Sequence[Mapping[str, Any]], threshold: float) -> int | None:
    """The longest length up to which no mean score, in per cent, is below the threshold; None where the first one is."""
    best = None
    for m in sorted(means, key=lambda m: m["length"]):
        if m["score"] < threshold:
            break
        best = m["length"]
    return best


def _own(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The base's mean score at the longest length within its window, None where that was not measured."""
    means = [m for row in rows if row["method"] == "none" for m in row["by_length"] if m["length"] <= row["original_context"]]
    return means[-1]["score"] if means else None


def _trial(p: Prompt, said: str) -> dict[str, Any]:
    score = float(p.scores(p.doc, [said])[str(p.length)])
    return {
        "task": p.task, "length": p.length, "tokens": len(p.ids), "wanted": [str(w) for w in p.doc["outputs"]], "answer": said,
        "score": 100 * score,
    }  # fmt: skip


def _point(trials: Sequence[Mapping[str, Any]], task: str, length: int) -> dict[str, Any]:
    scores = [t["score"] for t in trials if (t["task"], t["length"]) == (task, length)]
    return {"task": task, "length": length, "trials": len(scores), "score": float(np.mean(scores))}


# -- the harness's prompts --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder(tokenizer: Any) -> Iterator[str]:
    """A folder that the harness loads the tokenizer from, which it does with trust_remote_code: nothing else is in it."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(str(Path(folder, "tokenizer.json")))
        Path(folder, "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        yield folder


def _prompts(name: str, length: int, wish: RulerOptions, folder: str, tokenizer: Any, lead: Sequence[int]) -> list[Prompt]:
    """The prompts of a task at a length. UsageError for a length without room, InputError where its data cannot be had."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), _drawn():
        module = _module(TASKS[name].module, bool(TASKS[name].downloads))
        _check_room(name, length, module, tokenizer)
        _reset(wish.seed)
        task = _task(name, length, wish.trials, folder, module)
    prompts = []
    for instance in task.instances:
        text, told = instance.args
        ids = as_ids([*lead, *tokenizer.encode(text, add_special_tokens=False).ids])
        prompts.append(Prompt(name, length, ids, told["max_gen_toks"], instance.doc, task.process_results))
    return prompts


def _task(name: str, length: int, trials: int, folder: str, module: Any) -> Any:
    """The harness's task, of so many texts, with its requests."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    row = TASKS[name]
    config = load_yaml(Path(str(module.__file__)).with_name(f"{row.file}.yaml"))
    module = _module(row.module, bool(row.downloads))
    maker, makes = getattr(module, row.maker), config["custom_dataset"].__name__

    def few(*args: Any, **kwargs: Any) -> Any:
        return maker(*args, **{**kwargs, "num_samples": min(trials, kwargs.get("num_samples", trials))})

    setattr(module, row.maker, few)
    try:
        made = getattr(module, makes)(tokenizer=folder, max_seq_lengths=[length])
    except Exception as e:  # of a generator or of a download
        if row.downloads:
            raise InputError(f"{name} needs {row.downloads}: {type(e).__name__} {e}", "leave it out of --tasks") from None
        raise UsageError(f"{name} has no texts of {length} tokens: {e}", "longer ones: --lengths 4k,8k") from None
    finally:
        setattr(module, row.maker, maker)
    task = ConfigurableTask(config={**config, "custom_dataset": lambda **_: made})
    task.build_all_requests(rank=0, world_size=1)
    return task


def _module(name: str, downloads: bool) -> Any:
    """A module of the harness, fresh: cwe's has a state. Its import downloads nothing for tasks that need nothing."""
    import nltk

    fetch = nltk.download
    try:
        nltk.download = fetch if downloads else (lambda *_, **__: False)
        importlib.import_module(f"{ROOM}.prepare_niah")
        return importlib.reload(importlib.import_module(f"{ROOM}.{name}"))
    finally:
        nltk.download = fetch


def _check_room(name: str, length: int, module: Any, tokenizer: Any) -> None:
    """Raise UsageError where the shortest text of a task is too long: the harness would make it again without an end."""
    for call, answer, room in LEAST.get(name, ()):
        extra = {"max_seq_length": length} if name == "ruler_cwe" else {}
        text = "".join(part for part in module.generate_input_output(**call, **extra) if isinstance(part, str))
        most = SPARE * len(tokenizer.encode(text, add_special_tokens=False).ids) + answer
        if most > (room or length):
            what = f"the examples of {room} tokens" if room else f"texts of {length} tokens"
            raise UsageError(f"{what} of {name} have no room: this tokenizer needs {round(most)}", "longer --lengths, or other --tasks")


@contextlib.contextmanager
def _drawn() -> Iterator[None]:
    """The global generators, which the harness draws from, as they were before."""
    before, numbers = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numbers)


def _reset(seed: int) -> None:
    random.seed(SEEDS[0] + seed)
    np.random.seed(SEEDS[1] + seed)
