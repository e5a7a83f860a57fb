"""`validate`: the three questions of one checkpoint, answered, judged and put on record."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from ..asking import check_choices, taking
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.manifest import Manifest, read_manifest, whole_recipe
from ..checkpoint.source import resolve
from ..compute.record import DTYPES, SHORTEST, made, record
from ..compute.reference import Reference, pick_device
from ..compute.values import changed_since, other_model
from ..compute.weights import check_weights
from ..conversion import window_off
from ..conversion.extension import counted_from, extend
from ..conversion.intention import Intention, answered, check_recipe, intention_of, verdicts_of
from ..conversion.overriding import Override, overrides_of
from ..conversion.tempering import of_another, recorded_beta, tempered
from ..errors import UsageError, need
from ..formats.digests import digests
from ..formats.inputs import noticing
from ..hearing import SayStage, counted, heard
from ..options import Recipe, ValidateOptions
from ..readers.judge import Verdict
from ..rope import Effect
from ..runtimes import probe
from ..runtimes.environments import listing, python_of
from ..runtimes.library import folder_of, using
from ..runtimes.table import RUNTIMES, runtime_of
from . import twin
from .course import RATES, Course, Outline
from .extension import Lineage, check_base, lineage
from .foreseen import foreseen
from .generation import warnings
from .judging import Tolerance
from .real import budget_of, real_studies, short_side, sides
from .result import Validated, validated
from .study import FAILED, Question, study, telling_position, twin_subject
from .tokenizer import check_tokenizer
from .verdict import verdict_of

WINDOWED_TOKENS = 16384  # of a twin with a sliding window: runtimes hold its mask, tokens × tokens, whole
ON_RECORD = (
    "base",
    "like",
    "runtimes",
    "device",
    "dtype",
    "budget",
    "tokens",
    "twin_tokens",
    "text",
    "real",
    "twin",
    "overrides",
    "cut",
)  # of the options
ONLY_CUT = "the cut alone is here, which the reference compares with the base's"
ITS_OWN = "the model's own"  # which nothing was done to
TWIN_TOKENS = 131072  # of the twin on a CPU: a minute or two a runtime; attention costs the square of it


@heard
def check(say: SayStage, model: str, settings: ValidateOptions, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Check `model` and return the result as JSON; `verdict` is "passed", "failed" or "inconclusive".

    The result also goes into the manifest where there is one. `tell` is told, before anything is run, what cannot be
    proved so. Raises UsageError for settings out of range and InputError or
    FormatError for a model that cannot be read.
    """
    need("validate", "a validation")
    settings = _checked(settings)
    own = folder_of(settings.llama_lib)
    with using(own):
        return _check(model, settings, own, Course(say), tell)


def _check(model: str, settings: ValidateOptions, own: Path | None, say: Course, tell: Callable[[str], None]) -> dict[str, Any]:
    """As `check`; `own` is the folder of the llama.cpp that is run, None for the one that is installed."""
    with noticing() as inputs:
        c = _opened(model, settings.revision, settings.real, settings.cut)
        names, missing = chosen_runtimes(c, settings.runtimes)
        if own:
            _probe(own, settings.llama_lib is not None, names)
        base = _opened(settings.base, None, True, settings.cut) if settings.base else None
        manifest = read_manifest(c.source.path) if not settings.overrides else None
        say.expect(_outline(c, base, manifest, Question(Intention(c.rope, c.context, ""), device="cpu"), names, settings))
        files = _digests(c, say)
    settings, beta = _beta_meant(c, manifest, settings)
    if base is not None:
        base = tempered(base, beta)
        base = base.standing_alone() if base.gguf and not c.gguf else base
        check_base(c, base, manifest, read_manifest(base.source.path))
    told = _told(c, settings)
    of_base = Lineage(told.meant) if told else _lineage(c, base, manifest, settings)
    meant = of_base.meant
    if told:
        names, missing = told.taking(names, settings.runtimes), [row for row in missing if RUNTIMES[row["name"]].told]
    result: dict[str, Any] = {
        "model": c.source.name,
        **({"commit": c.source.commit} if c.source.repo else {}),
        "format": "gguf" if c.gguf else "safetensors",
        "dtype": main_dtype(c),
        "intention": {"recipe": whole_recipe(meant.rope, meant.long), "context": meant.context, "origin": meant.origin},
        "files": files,
        "settings": {name: str(v) if isinstance(v := getattr(settings, name), Path) else v for name in ON_RECORD},
    }
    say("recipe", 0.0)
    result["recipe"] = answered(c, meant, told.verdicts) if told else _recipe(c, of_base)
    result["weights"] = (
        {"verdict": "passed", "how": ITS_OWN, "why": "", "different": []} if told else _weights(c, base, manifest, say, beta)
    )
    result["tokenizer"] = {"verdict": "passed", "why": ITS_OWN, "differences": []} if told else check_tokenizer(c, base)
    result["warnings"] = warnings(c)
    same_size = meant.rope.rotary_dim == c.rope.rotary_dim  # else there is nothing to run, and the recipe says why
    judged = told.verdicts if told else verdicts_of(c, meant)
    question = _question(meant, judged, names, settings, told.options(names) if told else {})
    result |= {"studies": [], "missing": missing}
    runnable = names and same_size
    lengths = _lengths(c, base, question, settings) if runnable else {}
    say.expect(_outline(c, base, manifest, question, names, settings) if runnable else None)
    for why in foreseen(result, lengths, names, settings.runtimes, settings.real, settings.twin, c.family.listed):
        tell(f"foreseen  this cannot pass: {why}")
    result["studies"] = _studies(c, base, question, names, settings, say) if runnable else []
    inputs.check()
    result |= verdict_of(result, settings.runtimes, settings.real, settings.twin, c.family.listed)
    result |= made()
    if manifest is not None and settings.like is None and settings.recipe is None and c.source.commit is None:
        kept = {k: v for k, v in result.items() if k not in ("model", "missing")}
        result["unrecorded"] = record(c.source.path, "validation", kept)
    return result


def _opened(model: str, revision: str | None, weights: bool, cut: int | None) -> Checkpoint:
    """A model; of one on the Hub that is cut no weights but the headers, where it has such."""
    source = resolve(model, revision, weights=weights and not cut)
    if weights and cut and (source.headers is None if source.repo else source.headers is not None):
        source = resolve(model, revision)
    return open_checkpoint(source)


@taking(ValidateOptions)
def validate(model: str, options: ValidateOptions) -> Validated:
    """Check `model`, as `yarn-convert validate` does, with the fields of `ValidateOptions` by keyword: `validate("long.gguf",
    base="smollm2-135m")`. The result also goes into the manifest where there is one. Raises as `check` does; a model that fails its
    check raises nothing."""
    return validated(check(model, options))


def _probe(own: Path, asked: bool, names: Sequence[str]) -> None:
    """UsageError for a llama.cpp of the user's own that cannot be run, or that is asked for and would not be."""
    if any(runtime_of(name).name == "llama.cpp" for name in names):
        probe(own)
    elif asked:
        raise UsageError("--llama-lib is a llama.cpp, which is not run here", "it reads a GGUF: --out gguf makes one")


@dataclass(frozen=True, slots=True)
class Told:
    """What runtimes are told of a model that is as it was, where that is what is checked."""

    meant: Intention
    overrides: Mapping[str, Override]  # by reader

    @property
    def verdicts(self) -> dict[str, Verdict]:
        return {name: o.verdict for name, o in self.overrides.items()}

    def taking(self, names: Sequence[str], wished: Sequence[str]) -> list[str]:
        """Those of the runtimes `names` that can be told here; UsageError for one that was wished for and cannot."""
        found = [name for name in names if (row := runtime_of(name)).told and self.overrides[row.reader].takes]
        if lost := [name for name in wished if name not in found]:
            ways = [name for name, row in RUNTIMES.items() if row.told and row.reader in self.overrides]
            raise UsageError(
                f"{lost[0]} is not told anything here", f"--overrides runs {' and '.join(ways)}; 'yarn-convert overrides' says why"
            )
        return found

    def options(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """For the workers, by runtime."""
        return {row.name: self.overrides[row.reader].options for row in map(runtime_of, names)}


def _told(c: Checkpoint, settings: ValidateOptions) -> Told | None:
    """None where the file itself is checked. UsageError for --overrides without a recipe, or beside what says another."""
    if not settings.overrides:
        return None
    if settings.recipe is None or settings.base is not None or settings.like is not None:
        raise UsageError(
            "--overrides tells runtimes the recipe of the options over the model itself", "--scale 4, without --base and --like"
        )
    c = c.counting_from(settings.recipe.original_context)
    e = extend(c, settings.recipe)
    meant = Intention(e.rope, e.context, "as each runtime is told")
    return Told(meant, {o.row.reader: o for o in overrides_of(c, e) if o.row.reader})


def _lineage(c: Checkpoint, base: Checkpoint | None, manifest: Manifest | None, settings: ValidateOptions) -> Lineage:
    """What is meant. With a base it has to follow from that, unless the user says what is meant."""
    told = settings.recipe.original_context if settings.recipe else manifest.asked.original_context if manifest else None
    if base is None or settings.like is not None or settings.recipe not in (None, Recipe(original_context=told)):
        return Lineage(intention_of(c, settings.recipe, base, settings.like))
    if c.doubt and not base.doubt:
        c = c.counting_from(told or counted_from(base))  # the base says what the file leaves out
    return lineage(intention_of(c, settings.recipe, base, None, doubtful=True), base, told)


def _recipe(c: Checkpoint, of_base: Lineage) -> dict[str, Any]:
    found = check_recipe(c, of_base.meant)
    if of_base.why and not found["why"]:
        found |= {"verdict": FAILED, "layer": "base", "why": of_base.why}
    return found | {"doubt": of_base.doubt}


def _digests(c: Checkpoint, say: SayStage) -> dict[str, Any]:
    """What each file of the model is, name -> `digests.Digest` as JSON, and when it was written: a verdict is about these files and
    no others."""
    files = c.files  # which looks into the folder each time
    found = digests(files, counted(say, "digests", sum(path.stat().st_size for path in files.values())))
    return {name: {**msgspec.to_builtins(d), "modified": _modified(files[name])} for name, d in found.items()}


def _modified(path: Path) -> str:
    return dt.datetime.fromtimestamp(path.stat().st_mtime, dt.timezone.utc).isoformat(timespec="seconds")


def _checked(s: ValidateOptions) -> ValidateOptions:
    """The settings with the dtype's full name; UsageError for numbers out of range."""
    check_choices(s)
    for name in ("tokens", "twin_tokens"):
        value = getattr(s, name)
        if value is not None and value < SHORTEST:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {SHORTEST}, not {value}", "longer texts tell more recipes apart")
    if s.cut is not None and s.cut < 0:
        raise UsageError(f"--cut is {s.cut}, a number of layers", "--cut 2, or 0 for the whole model")
    if s.cut and not s.real:
        raise UsageError("--cut runs real weights, and --twin alone none", "leave out one of them")
    return replace(s, dtype=DTYPES[s.dtype])


def main_dtype(c: Checkpoint) -> str:
    """The type that most weights have, matrices only."""
    counts: Counter[str] = Counter()
    for t in c.tensors.values():
        if len(t.shape) > 1:
            counts[t.dtype] += t.elements
    return counts.most_common(1)[0][0] if counts else "F32"


def chosen_runtimes(c: Checkpoint, wished: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """(runtimes to run, those that could be added). UsageError for one that is unknown, missing or reads another format."""
    fmt = "gguf" if c.gguf else "safetensors"
    fitting = [name for name, row in RUNTIMES.items() if row.reads == fmt]
    for wish in wished:
        row = runtime_of(wish)
        if row.name not in fitting:
            raise UsageError(f"{row.name} reads {row.reads}, and this is {fmt}", f"for this format: {', '.join(fitting)}")
        if python_of(wish) is None:
            raise UsageError(f"{row.name} is not installed", f"yarn-convert runtimes add {row.name}")
    names = list(wished) or [name for name in fitting if python_of(name)]
    missing = [{k: row[k] for k in ("name", "add", "note")} for row in listing() if row["name"] in fitting and row["where"] is None]
    return names, missing


def _beta_meant(c: Checkpoint, manifest: Manifest | None, s: ValidateOptions) -> tuple[ValidateOptions, float | None]:
    """(the settings without the temperature of the position, which no recipe's table has; the β that is meant: as they say, or as it is on
    record). With --overrides, which tell no runtime of it, they keep it, and it is refused."""
    asked = s.recipe.position_temperature if s.recipe else None
    if s.overrides:
        return s, None
    recipe = replace(s.recipe, position_temperature=None) if s.recipe else None
    return replace(s, recipe=None if recipe == Recipe() else recipe), recorded_beta(c, manifest) if asked is None else asked


def _weights(c: Checkpoint, base: Checkpoint | None, manifest: Manifest | None, say: SayStage, beta: float | None = None) -> dict[str, Any]:
    if not c.tensors or c.source.headers is not None or (base is not None and base.source.headers is not None):
        why = "without weights there is nothing to compare" if base is None or not c.tensors else ONLY_CUT
        found: dict[str, Any] = {"verdict": "unchecked", "how": "", "why": why, "different": []}
    else:
        found = check_weights(c, base, manifest, counted(say, "weights", sum(t.nbytes for t in c.tensors.values())))
    why = of_another(c, beta) or (other_model(c, base, window_off(c, manifest)) if base is not None else changed_since(c, manifest))
    if why and found["verdict"] != FAILED:
        found |= {"verdict": FAILED, "how": "", "why": f"they are those of another model: {why}"}
    return found


# -- the studies ------------------------------------------------------------------------------------------------------


def _question(
    meant: Intention,
    judged: Mapping[str, Verdict],
    names: Sequence[str],
    settings: ValidateOptions,
    told: Mapping[str, Mapping[str, Any]],
) -> Question:
    predicted = {name: v for name in names if (v := judged.get(runtime_of(name).reader)) and v.kind != "unknown"}
    readings = {
        name: Effect(r.inv_freq, r.multiplier, r.beside.logits)
        for name in names
        if (v := judged.get(runtime_of(name).reader)) and (r := v.reading)
    }
    return Question(meant, readings, predicted, pick_device(settings.device), settings.dtype, told)


def _studies(
    c: Checkpoint, base: Checkpoint | None, question: Question, names: list[str], settings: ValidateOptions, say: Course
) -> list[dict[str, Any]]:
    meant, device, studies = question.meant, question.device, []
    original = meant.rope.original_context
    named = _named(c, base)
    if named is None:
        return []
    if settings.real:
        studies += real_studies(c, base, named, question, names, settings, say)
    if not c.family.listed:
        return studies
    with tempfile.TemporaryDirectory(prefix="yarn-convert-twin-") as folder:
        small = twin.write_twin(c, Path(folder, "twin.gguf" if c.gguf else "twin"))
        limit = _twin_limit(c, question)
        if settings.twin:
            subject = twin_subject(small, twin.ids(min(meant.context, settings.twin_tokens or limit)), original)
            whole, reference = replace(question, dtype="float32"), Reference(small, device)
            studies += [study(case, q, reference, names, say) for case, q in sides(c, subject, whole, names)]
        told = {w["name"] for s in studies for w in s["wrong_recipes"] if w["told_apart"]}
        for s in studies:
            for w in s["wrong_recipes"]:
                if w["name"] not in told:  # then nothing is proved, and the user wants to know what would
                    tolerance = Tolerance(s["tolerance"]["nmse"], s["tolerance"]["kl"], "")
                    w["needs"] = telling_position(small, question, w["name"], tolerance, min(limit, s.get("within", limit)))
    return studies


def _named(c: Checkpoint, base: Checkpoint | None) -> Checkpoint | None:
    """The one of both whose tensors have names that a reference could take; None where there is none."""
    if c.family.listed or not c.gguf:
        return c
    return base if base is not None and stands_for(base, c) else None


def _twin_limit(c: Checkpoint, q: Question) -> int:
    """Tokens of the twin's text at most."""
    limit = min(q.meant.context, TWIN_TOKENS if q.device == "cpu" else q.meant.context)
    return min(limit, WINDOWED_TOKENS) if c.window else limit


def _lengths(c: Checkpoint, base: Checkpoint | None, q: Question, settings: ValidateOptions) -> dict[str, int]:
    """Tokens of the text of each kind of run that is going to be, at most: a budget of time may allow fewer."""
    if _named(c, base) is None:
        return {}
    context = q.meant.context
    found = {"real": min(context, settings.tokens or context)} if settings.real else {}
    return found | ({"twin": min(context, settings.twin_tokens or _twin_limit(c, q))} if settings.twin and c.family.listed else {})


def _outline(
    c: Checkpoint, base: Checkpoint | None, manifest: Manifest | None, q: Question, names: Sequence[str], settings: ValidateOptions
) -> Outline:
    """What is going to be done, as far as that is known before anything runs."""
    lengths, rate = _lengths(c, base, q, settings), RATES[q.device]
    hashed = sum(path.stat().st_size for path in c.files.values())
    compared = sum(t.nbytes for t in c.tensors.values()) if (base or manifest) and c.source.headers is None else 0
    kinds = (lengths.get("real", 0), lengths.get("twin", 0), settings.cut or 0)
    found = Outline(c, names, hashed, compared, *kinds, based=base is not None, short=short_side(q.meant), rate=rate)
    budget = budget_of(q, settings)
    return found if budget is None else found.within(budget)


def stands_for(base: Checkpoint, c: Checkpoint) -> bool:
    """Whether the numbers of a folder are those of a GGUF whose tensors have no names here, as far as their types tell."""
    return base.gguf is None and not base.packed and main_dtype(c) in ("F32", main_dtype(base))
