"""The verdict of a whole validation, from its answers and studies: "passed", "failed" or "inconclusive", and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..compute.weights import PERMUTED
from ..runtimes.table import runtime_of
from .amplifying import UNDECIDED
from .predicting import costly, guessed
from .study import FAILED, NOT_RUN, PASSED, WIDTH

INCONCLUSIVE = UNDECIDED
Runs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]  # (a study, what one runtime did in it)


def verdict_of(result: Mapping[str, Any], asked: Sequence[str], real: bool = True, twin: bool = True, named: bool = True) -> dict[str, Any]:
    """The `verdict` of the whole, and `reasons` for it. A runtime that is known not to follow fails the whole only where it was
    `asked` for by name; a check that a wrong recipe passes too proves nothing. `real`, `twin`: whether these were to be run;
    `named`: whether its tensors have names here."""
    everything = [(s, r) for s in result["studies"] for r in s["runtimes"]]
    runs = [(s, r) for s, r in everything if r["verdict"] != NOT_RUN]
    absent = {
        r["runtime"]: f"{r['runtime']} could not be run here, which says nothing of the model: {r['why']}"
        for _, r in everything
        if r["verdict"] == NOT_RUN
    }
    failures = _failures(result, runs, asked)
    doubts = [f"recipe: {result['recipe']['doubt']}"] if result["recipe"].get("doubt") else []
    doubts += [why for name, why in absent.items() if name in asked or not runs]
    doubts += [] if runs else [f"no runtime computed anything{_why_none(result, real, named)}"]
    short, notes = _lengths(result, runs, twin)
    doubts += [f"{r['runtime']}, {s['kind']}: {r['why']}" for s, r in runs if r["verdict"] == UNDECIDED]
    doubts += short + _untold(result, [(s, r) for s, r in runs if r["verdict"] != UNDECIDED])
    verdict = FAILED if failures else INCONCLUSIVE if doubts else PASSED
    notes = [*absent.values(), *filter(None, map(_cost, result["studies"])), *notes]
    for s, r in runs:
        if r["verdict"] == PASSED and r.get("why"):
            notes.append(f"{r['runtime']}, {s['kind']}: {r['why']}")
        if r["predicted"] and r["verdict"] != UNDECIDED:
            does = "does, though its source says" if r["verdict"] == PASSED else "does not follow, as is known"
            notes.append(f"{r['runtime']} {does}: {r['predicted']}")
    return {"verdict": verdict, "reasons": failures or doubts or list(dict.fromkeys(notes))}


def _failures(result: Mapping[str, Any], runs: Runs, asked: Sequence[str]) -> list[str]:
    found = [f"{part}: {result[part]['why']}" for part in ("recipe", "weights", "tokenizer") if result[part]["verdict"] == FAILED]
    found += [f"weights: {PERMUTED}" for s in result["studies"] if s["permuted"]]
    found += [why for s in result["studies"] if (why := _guesses(s))]
    found += [f"weights, {s['kind']}: {s['of_base']['why']}" for s in result["studies"] if s.get("of_base", {}).get("why")]
    for s, r in runs:
        if r["verdict"] == FAILED and (not r["as_predicted"] or r["runtime"] in asked):
            found.append(f"{r['runtime']}, {s['kind']}: {r['why']}")
    return found


def _guesses(s: Mapping[str, Any]) -> str:
    """Why a model that predicts text no better than guessing fails; "" for others, and where its base does no better."""
    base = s.get("base_text_loss")
    if not guessed(s) or (base is not None and guessed({**s, "text_loss": base})):
        return ""
    theirs = "--base MODEL tells whether its base does better" if base is None else f"its base has {base:.2f}"
    loss, guessing = s["text_loss"], s["guessing_loss"]
    return f"weights: the file predicts text no better than guessing: {loss:.2f} nats a token, guessing {guessing:.2f}; {theirs}"


def _cost(s: Mapping[str, Any]) -> str:
    """A note on a recipe that costs much on texts that its base reads without. No reason to fail: it is computed as it is meant, some
    methods are so bad before any training, and that the weights are the base's is asked of them."""
    if not costly(s):
        return ""
    found = s["within_base"]
    losses = f"{found['by_recipe']:.2f} nats a token instead of {found['by_base']:.2f}"
    return f"within its base's own context this recipe predicts much worse, as untrained linear does: {losses} (see evaluate)"


def _why_none(result: Mapping[str, Any], real: bool, named: bool) -> str:
    """Why no runtime was run, and what helps."""
    if not named and result["format"] == "gguf":
        return ": its tensors have no names here; --base FOLDER, of the same type or of an f32 GGUF, is a reference"
    if not named and not real:
        return ": its tensors have no names here, so it has no twin: leave out --twin"
    return f": {result['missing'][0]['add']}" if result["missing"] else ""


def _lengths(result: Mapping[str, Any], runs: Runs, twin: bool) -> tuple[list[str], list[str]]:
    """(doubts, notes) on how far each runtime was run."""
    context, original = result["intention"]["context"], result["intention"]["recipe"]["original_context"]
    doubts, notes = [], []
    for name in dict.fromkeys(r["runtime"] for _, r in runs):
        reached = max((w["end"] for _, r in runs if r["runtime"] == name for w in r["windows"]), default=0)
        if reached <= original < context:
            ways = {
                "real": f"--tokens {original + WIDTH}",
                "cut": f"--tokens {original + WIDTH}",
                "twin": f"--twin-tokens {original + WIDTH}",
            }
            ways = {k: way for k, way in ways.items() if any(s["kind"] == k for s in result["studies"])}
            ways |= {} if twin else {"twin": "the twin (without --real)"}
            doubts.append(f"{name} computed nothing beyond the original {original:,} tokens: {', or '.join(ways.values())}")
        elif reached < context - runtime_of(name).spare:
            notes.append(f"{name} was run over {reached:,} of {context:,} tokens")
    return doubts, notes


def _untold(result: Mapping[str, Any], runs: Runs) -> list[str]:
    """What each runtime would have passed with as well, and what would tell it apart."""
    found = []
    for name in dict.fromkeys(r["runtime"] for _, r in runs):
        wrong = [
            (w["name"], w["told_apart"] and w["name"] not in r.get("blind_to", ()))
            for s, r in runs
            if r["runtime"] == name
            for w in s["wrong_recipes"]
        ]
        for what in dict.fromkeys(name for name, _ in wrong):
            if not any(told for other, told in wrong if other == what):
                found.append(f"{name} would have passed with {what!r} too: {_telling(result, what)}")
    return found


def _telling(result: Mapping[str, Any], wrong: str) -> str:
    """At which length a wrong recipe that was told apart nowhere would show."""
    found = [(w["needs"], s["kind"]) for s in result["studies"] for w in s["wrong_recipes"] if w["name"] == wrong and w.get("needs")]
    if not found:
        return "no length of this context tells them apart in a type so coarse: the twin may (without --real)"
    needs, kind = min(found)
    option = "--twin-tokens" if kind == "twin" else "--tokens"
    return f"about {needs:,} tokens tell them apart ({option} {needs}), or the twin"
