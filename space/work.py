"""One piece of a visitor's work, in a process of its own: a request as JSON on stdin; on stdout a line of JSON for each thing to say,
the last of which is the answer or the error.

The process has the visitor's token, an empty folder and a cache of the Hub that is deleted after it: nothing of one visitor's reaches
another. No weights are read, but their headers.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from yarn_convert import Recipe
from yarn_convert.checkpoint.hub_client import is_repo
from yarn_convert.checkpoint.naming import named
from yarn_convert.conversion import Conversion, prepare
from yarn_convert.conversion.describe import describe, opened
from yarn_convert.conversion.intention import intention_of, survey
from yarn_convert.errors import UsageError, YarnConvertError
from yarn_convert.families import ALIASES
from yarn_convert.hearing import hearing
from yarn_convert.options import ConvertOptions, InspectOptions, ValidateOptions
from yarn_convert.publishing import check_repo, on_the_hub, plan_push, run_upload
from yarn_convert.readers.survey import verdict_json
from yarn_convert.rope import table
from yarn_convert.targets.moving import WriteBytes
from yarn_convert.validation import check
from yarn_convert.validation.report import html_report

Say = Callable[[str], None]
Answer = dict[str, Any]
MEMORY = {"look": 2 << 30, "plan": 2 << 30, "prove": 6 << 30, "publish": 2 << 30}  # bytes: a machine of 16 GiB serves several at once
HINTS = {  # of the command line -> the page's, whose token reads gated models and writes to what the page has made
    r"then log in: hf auth login.*": "then sign in above",
    r", or log in: hf auth login.*": "; this page sees no private ones",
    r"^hf auth login.*": "name a new repository of your own, or one that this page has made",
}


def model_of(asked: Mapping[str, Any]) -> str:
    """A name on the Hub, or an address there: never a path, for this machine's files are not the visitor's."""
    name = str(asked["model"])
    if name not in ALIASES and not ((found := named(name)) and is_repo(found.repo)):
        raise UsageError(f"{name!r} is no name of a model on the Hub", "as Qwen/Qwen3-8B, or an alias, as qwen3-8b")
    return name


def look(asked: Mapping[str, Any], say: Say) -> Answer:
    """What inspect shows of the model, and what each runtime computes from it as it is."""
    say("reading the headers")
    c = opened(model_of(asked), InspectOptions())
    verdicts = survey(c, intention_of(c, None, None, None, doubtful=True))
    return {"facts": describe(c).to_dict(), "runtimes": [verdict_json(v) for v in verdicts]}


def planned(asked: Mapping[str, Any], say: Say) -> Conversion:
    """The conversion that is asked for, from headers alone. UsageError where its weights would have to come here."""
    say("planning")
    recipe = Recipe(**asked["recipe"])
    conversion = prepare(model_of(asked), ConvertOptions(recipe, out="safetensors"), weights=False)
    if not (on_the_hub(conversion) and conversion.plan.identical):
        raise UsageError(
            "the weights of this model would have to be read, and this page reads none", f"on your machine: {asked['command']}"
        )
    return conversion


def plan(asked: Mapping[str, Any], say: Say) -> Answer:
    """What would be written and published, who computes it, and the frequencies before and after."""
    conversion = planned(asked, say)
    p, base = conversion.plan, table(conversion.checkpoint.rope)
    made = table(p.rope, p.context)
    upload = plan_push(conversion, asked["repo"], bool(asked["private"]))
    return {
        "context": p.context,
        "original_context": p.rope.original_context,
        "scale": conversion.extension.scale,
        "attention_factor": made.multiplier,
        "method": p.rope.method,
        "notes": [*p.notes, *upload.warnings],
        "readers": {name: v.why or "exact" for name, v in p.verdicts.items()},
        "versions": dict(p.versions),
        "files": upload.as_json()["files"],
        "card": upload.card,
        "inv_freq": {"base": base.inv_freq.tolist(), "extended": made.inv_freq.tolist()},
    }


def prove(asked: Mapping[str, Any], say: Say) -> Answer:
    """The twin of what would be written, in the runtimes that are here: a tiny random model with the plan's own config.json."""
    conversion = planned(asked, say)
    say("the twin: a tiny random model with these RoPE keys, at all positions")
    with tempfile.TemporaryDirectory() as beside:
        folder = Path(beside, conversion.plan.out.name)
        folder.mkdir()
        for job in conversion.plan.jobs:
            if isinstance(job, WriteBytes) and job.name == "config.json":
                (folder / job.name).write_bytes(job.data)
        options = ValidateOptions(recipe=Recipe(**asked["recipe"]), real=False)
        found = check(str(folder / "config.json"), options)
    return {"verdict": found["verdict"], "reasons": found["reasons"], "page": html_report(found, asked["command"])}


def publish(asked: Mapping[str, Any], say: Say) -> Answer:
    """Puts it into the visitor's repository: the base's weights are copied on the server, everything else goes from here."""
    check_repo(asked["repo"])
    conversion = planned(asked, say)
    upload = plan_push(conversion, asked["repo"], bool(asked["private"]))
    return {"url": run_upload(upload, say), "repo": asked["repo"]}


WORK = {function.__name__: function for function in (look, plan, prove, publish)}


def main() -> None:
    lock, said = Lock(), ""

    def put(**told: Any) -> None:
        with lock:  # what runs is told from any thread
            print(json.dumps(told), flush=True)

    def say(line: str) -> None:
        nonlocal said
        if line and line != said:
            said = line
            put(say=line)

    asked = json.load(sys.stdin)
    work = asked["work"]
    limited(MEMORY[work])
    try:
        with hearing(lambda call, what, done, more: say(f"{what}, {done:.0%}" if what and done else what)):
            put(answer=WORK[work](asked, say))
    except YarnConvertError as e:
        hint = e.hint
        for its, ours in HINTS.items():
            hint = re.sub(its, ours, hint)
        put(error=e.message, hint=hint)
    except MemoryError:
        put(
            error=f"this takes more than {MEMORY[work] >> 30} GiB of memory, which this page does not have",
            hint=f"on your machine: {asked['command']}",
        )


def limited(memory: int) -> None:
    """No more than so many bytes, so that one visitor's model takes nothing from another's."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # of another system, or where less is allowed already
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


if __name__ == "__main__":
    main()
