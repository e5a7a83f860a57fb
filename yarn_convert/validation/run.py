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
from ..checkpoint import Checkpoint
from ..checkpoint.manifest import Manifest, read_manifest, whole_recipe
from ..compute.record import DTYPES, SHORTEST, made, record
from ..compute.reference import Reference, pick_device
from ..compute.values import changed_since, other_model
from ..compute.weights import check_weights
from ..conversion import window_off
from ..conversion.extension import counted_from, extend
from ..conversion.intention import Intention, answered, check_recipe, intention_of, verdicts_of
from ..conversion.tempering import of_another, recorded_beta, tempered
from ..conversion.ways import Override, overrides_of
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
from .opening import as_memory_allows, described, with_weights
from .real import budget_of, real_studies, short_side, sides
from .result import AskedOptions, Validated, validated
from .study import FAILED, Question, study, telling_position, twin_subject
from .tokenizer import check_tokenizer
from .verdict import verdict_of

WINDOWED_TOKENS = 16384  # of a twin with a sliding window: runtimes hold its mask, tokens × tokens, whole
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


@dataclass(frozen=True, slots=True)
class Opened:
    """What is checked, beside what, and how: the file `c`, its base and its manifest, the runtimes to run, by their `names`."""

    c: Checkpoint
    base: Checkpoint | None
    manifest: Manifest | None
    settings: ValidateOptions
    names: list[str]

    @property
    def may_be_recorded(self) -> bool:
        """Whether the result is about what the manifest says, and the manifest a file of ours."""
        s = self.settings
        return self.manifest is not None and s.like is None and s.recipe is None and self.c.source.commit is None


def _check(model: str, settings: ValidateOptions, own: Path | None, say: Course, tell: Callable[[str], None]) -> dict[str, Any]:
    """As `check`; `own` is the folder of the llama.cpp that is run, None for the one that is installed."""
    with noticing() as inputs:
        o, missing = _opened(model, settings, own, tell)
        say.expect(_outline(o, Question(Intention(o.c.rope, o.c.context, ""), device="cpu")))
        files = _digests(o.c, say)
    o, beta = _beside_base(o)
    told = _told(o.c, o.settings)
    of_base = Lineage(told.meant) if told else _lineage(o.c, o.base, o.manifest, o.settings)
    if told:
        o = replace(o, names=told.taking(o.names, o.settings.runtimes))
        missing = [row for row in missing if RUNTIMES[row["name"]].told]
    result = _head(o, of_base.meant, files)
    say("recipe", 0.0)
    result |= _told_answers(o.c, told) if told else _answers(o, of_base, beta, say)
    result |= {"warnings": warnings(o.c), "studies": [], "missing": missing}
    question, runnable = _question(o, of_base.meant, told), bool(o.names) and of_base.meant.rope.rotary_dim == o.c.rope.rotary_dim
    say.expect(_outline(o, question) if runnable else None)
    wished = (o.settings.runtimes, o.settings.real, o.settings.twin, o.c.family.listed)
    for why in foreseen(result, _lengths(o, question) if runnable else {}, o.names, *wished):
        tell(f"foreseen  this cannot pass: {why}")
    result["studies"] = _studies(o, question, say) if runnable else []  # else the recipe says why there is nothing to run
    inputs.check()
    result |= verdict_of(result, *wished) | made()
    if o.may_be_recorded:
        kept = {k: v for k, v in result.items() if k not in ("model", "missing")}
        result["unrecorded"] = record(o.c.source.path, "validation", kept)
    return result


def _opened(model: str, settings: ValidateOptions, own: Path | None, tell: Callable[[str], None]) -> tuple[Opened, list[dict[str, Any]]]:
    """(what is checked, as much of it as is looked at, and the settings with what that means; the runtimes that could be added)."""
    c = described(model, settings.revision, settings.real)
    names, missing = chosen_runtimes(c, settings.runtimes)
    if own:
        _probe(own, settings.llama_lib is not None, names)
    base = described(settings.base, None, True) if settings.base else None
    if names:
        settings, only = as_memory_allows(c, base, _named(c, base), settings)
        if only:
            tell(only)
    if settings.real and not settings.cut:
        c = with_weights(c, model, settings.revision)
    if base is not None and settings.base and not settings.cut and c.source.has_weights:
        base = with_weights(base, settings.base, None)
    return Opened(c, base, None if settings.overrides else read_manifest(c.source.path), settings, names), missing


def _beside_base(o: Opened) -> tuple[Opened, float | None]:
    """(the same, its base as it is compared with, the β that is meant). UsageError for what is no base."""
    settings, beta = _beta_meant(o.c, o.manifest, o.settings)
    base = o.base
    if base is not None:
        base = tempered(base, beta)
        base = base.standing_alone() if base.gguf and not o.c.gguf else base
        check_base(o.c, base, o.manifest, read_manifest(base.source.path))
    return replace(o, settings=settings, base=base), beta


def _head(o: Opened, meant: Intention, files: Mapping[str, Any]) -> dict[str, Any]:
    """What a result begins with: the file, what is meant by it, and how it is checked."""
    c = o.c
    return {
        "model": c.source.name,
        **({"commit": c.source.commit} if c.source.repo else {}),
        "format": "gguf" if c.gguf else "safetensors",
        "dtype": main_dtype(c),
        "intention": {"recipe": whole_recipe(meant.rope, meant.long), "context": meant.context, "origin": meant.origin},
        "files": files,
        "settings": {name: str(v) if isinstance(v := getattr(o.settings, name), Path) else v for name in AskedOptions.__struct_fields__},
    }


def _answers(o: Opened, of_base: Lineage, beta: float | None, say: SayStage) -> dict[str, Any]:
    """Whether recipe, weights and tokenizer are what is meant."""
    return {
        "recipe": _recipe(o.c, of_base),
        "weights": _weights(o.c, o.base, o.manifest, say, beta),
        "tokenizer": check_tokenizer(o.c, o.base),
    }


def _told_answers(c: Checkpoint, told: Told) -> dict[str, Any]:
    """The same of a model that is as it was: its recipe alone is asked of what runtimes are told."""
    return {
        "recipe": answered(c, told.meant, told.verdicts),
        "weights": {"verdict": "passed", "how": ITS_OWN, "why": "", "different": []},
        "tokenizer": {"verdict": "passed", "why": ITS_OWN, "differences": []},
    }


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
    if not c.tensors or not c.source.has_weights or (base is not None and not base.source.has_weights):
        why = "without weights there is nothing to compare" if base is None or not c.tensors else ONLY_CUT
        found: dict[str, Any] = {"verdict": "unchecked", "how": "", "why": why, "different": []}
    else:
        found = check_weights(c, base, manifest, counted(say, "weights", sum(t.nbytes for t in c.tensors.values())))
    why = of_another(c, beta) or (other_model(c, base, window_off(c, manifest)) if base is not None else changed_since(c, manifest))
    if why and found["verdict"] != FAILED:
        found |= {"verdict": FAILED, "how": "", "why": f"they are those of another model: {why}"}
    return found


# -- the studies ------------------------------------------------------------------------------------------------------


def _question(o: Opened, meant: Intention, told: Told | None) -> Question:
    judged = told.verdicts if told else verdicts_of(o.c, meant)
    by_name = {name: v for name in o.names if (v := judged.get(runtime_of(name).reader))}
    predicted = {name: v for name, v in by_name.items() if v.kind != "unknown"}
    readings = {name: Effect(r.inv_freq, r.multiplier, r.beside.logits) for name, v in by_name.items() if (r := v.reading)}
    return Question(meant, readings, predicted, pick_device(o.settings.device), o.settings.dtype, told.options(o.names) if told else {})


def _studies(o: Opened, question: Question, say: Course) -> list[dict[str, Any]]:
    c, names, settings = o.c, o.names, o.settings
    meant, studies = question.meant, list[dict[str, Any]]()
    named = _named(c, o.base)
    if named is None:
        return []
    if settings.real:
        studies += real_studies(c, o.base, named, question, names, settings, say)
    if not c.family.listed:
        return studies
    with tempfile.TemporaryDirectory(prefix="yarn-convert-twin-") as folder:
        small = twin.write_twin(c, Path(folder, "twin.gguf" if c.gguf else "twin"))
        limit = _twin_limit(c, question)
        if settings.twin:
            subject = twin_subject(small, twin.ids(min(meant.context, settings.twin_tokens or limit)), meant.rope.original_context)
            whole, reference = replace(question, dtype="float32"), Reference(small, question.device)
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


def _lengths(o: Opened, q: Question) -> dict[str, int]:
    """Tokens of the text of each kind of run that is going to be, at most: a budget of time may allow fewer."""
    if _named(o.c, o.base) is None:
        return {}
    context, s = q.meant.context, o.settings
    found = {"real": min(context, s.tokens or context)} if s.real else {}
    return found | ({"twin": min(context, s.twin_tokens or _twin_limit(o.c, q))} if s.twin and o.c.family.listed else {})


def _outline(o: Opened, q: Question) -> Outline:
    """What is going to be done, as far as that is known before anything runs."""
    c, lengths = o.c, _lengths(o, q)
    hashed = sum(path.stat().st_size for path in c.files.values())
    compared = sum(t.nbytes for t in c.tensors.values()) if (o.base or o.manifest) and c.source.has_weights else 0
    kinds = (lengths.get("real", 0), lengths.get("twin", 0), o.settings.cut or 0)
    found = Outline(c, o.names, hashed, compared, *kinds, based=o.base is not None, short=short_side(q.meant), rate=RATES[q.device])
    budget = budget_of(q, o.settings)
    return found if budget is None else found.within(budget)


def stands_for(base: Checkpoint, c: Checkpoint) -> bool:
    """Whether the numbers of a folder are those of a GGUF whose tensors have no names here, as far as their types tell."""
    return base.gguf is None and not base.packed and main_dtype(c) in ("F32", main_dtype(base))
