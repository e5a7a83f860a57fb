"""yarn-convert as a page: look at a model on the Hub, plan its extension, prove it, and publish it, without downloading its weights."""

from __future__ import annotations

import html
import math
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import pandas as pd
from huggingface_hub import get_token
from visitors import Refused, do

from yarn_convert.asking import spelled
from yarn_convert.checkpoint.naming import named
from yarn_convert.cli.show import human
from yarn_convert.errors import InputError
from yarn_convert.options import Recipe, tokens
from yarn_convert.rope import METHODS

SPANNING = [name for name, row in METHODS.items() if row.spans]  # how far is all that they have to be told
CSS = """
.verdict { font-weight: 600 }
.facts { width: 100%; border-collapse: collapse; border: 0 !important }
.facts tr, .facts td, .facts th { border: 0 !important }
.facts td, .facts th { padding: .15rem .6rem .15rem 0; text-align: left; vertical-align: top }
.facts td:last-child { overflow-wrap: anywhere; padding-right: 0 }
.facts th[scope=row] { white-space: nowrap; font-weight: 400; opacity: .8; padding-right: 1rem; width: 1% }
@media (max-width: 40rem) { #runtimes th[scope=row] { white-space: normal } }
.no { color: #c0392b; font-weight: 600 } .dark .no { color: #ff8674 }
.no small { color: var(--body-text-color); font-weight: 400; font-size: .9em }
.yes { color: #1d7a48; font-weight: 600 } .dark .yes { color: #6fd39b }
iframe.proof { width: 100%; height: 42rem; border: 0; border-radius: .5rem }
"""
# The theme's own are too pale to be read by all: white on its orange has a contrast of 2.8 : 1, its hints one of 2.6 : 1.
THEME = gr.themes.Default().set(
    button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_800",
    block_info_text_color="*neutral_600",
)  # fmt: skip
ABOUT = """# yarn-convert
Extend the context of a RoPE language model so that runtimes compute what was meant. Name a model, choose how far, prove it, and publish
it to your account: its weights are copied on the server and never come here. Sign in first to publish, or to see a gated model."""
PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # nothing here is an API
QUICK: dict[str, Any] = PRIVATE | {"concurrency_id": "quick", "concurrency_limit": 4}  # what asks the Hub, and computes next to nothing


@dataclass(frozen=True)
class Asked:
    """What a visitor has filled in, as a recipe's fields."""

    model: str
    recipe: dict[str, Any]
    repo: str
    private: bool

    def request(self) -> dict[str, Any]:
        return {"model": self.model, "recipe": self.recipe, "repo": self.repo, "private": self.private, "command": self.command}

    @property
    def command(self) -> str:
        options = [
            word for name, value in self.recipe.items() for word in (spelled(Recipe, name), f"{value:g}" if name == "scale" else value)
        ]
        return shlex.join(["yarn-convert", self.model, *map(str, options), "--out", "safetensors"])


def asked_of(model: str, by: str, factor: float, context: str, method: str, short: bool, original: str, repo: str, private: bool) -> Asked:
    """Raises Refused for what is no number."""
    recipe: dict[str, Any] = {}
    try:
        recipe |= {"scale": float(factor)} if by == "factor" else {"context": tokens(context.strip())}
        recipe |= {"original_context": tokens(original.strip())} if original.strip() else {}
    except (TypeError, ValueError) as e:
        raise Refused(str(e) if by != "factor" else "the factor is no number", "as 4, or a context as 128k") from None
    recipe |= {"method": method} | ({"short": "base"} if short else {})
    return Asked(model.strip(), recipe, repo.strip() or proposed(model, "USER"), private)


def proposed(model: str, user: str) -> str:
    """The repository that is proposed for what is made of a model, by whatever it was named."""
    try:
        name = found.repo if (found := named(model.strip())) else model.strip()
    except InputError:  # an address of something else, which the look at it says
        name = ""
    return f"{user}/{name.split('/')[-1] or 'model'}-long"


# -- what is shown ----------------------------------------------------------------------------------------------------


def cells(rows: list[list[str]], head: list[str] | None = None) -> str:
    """A table as HTML; the texts are strangers'."""
    top = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in head or [])
    body = "".join(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>' for first, *row in rows)
    return f'<table class="facts">{f"<tr>{top}</tr>" if top else ""}{body}</table>'


def short(n: float) -> str:
    """A number of parameters as people say it."""
    for unit, of in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if n >= of:
            return f"{n / of:.3g}{unit}"
    return f"{n:,}"


def facts_html(f: dict[str, Any]) -> str:
    e = html.escape
    size = sum(t["bytes"] for t in f["types"].values())
    cache = ", ".join(f"{human(b)} at {int(n):,}" for n, b in f["kv_cache_bytes"].items())
    parameters = f"{short(f['parameters'])} parameters, " if f["parameters"] else ""
    rows = [
        ["model", f"{e(f['repo'] or f['name'])}, {e(f['architecture'])}"],
        ["weights", f"{parameters}{human(size)} ({e(', '.join(f['types']))})"],
        ["RoPE", f"{e(f['rope']['method'])}, θ = {f['rope']['rope_theta']:,g}, {f['rope']['rotary_dim']} dimensions turn"],
        ["context", f"{f['context']:,} tokens, trained to {f['original_context']:,} {e(f['original_context_note'] or '')}"],
        ["KV cache", f"{cache} tokens, in float16"],
    ]
    rows += [["layers", e(f["other_layers"])]] if f["other_layers"] else []
    rows += [["inconsistent", f'<span class="no">{e(line)}</span>'] for line in f["inconsistencies"]]
    return cells(rows)


def runtimes_html(verdicts: list[dict[str, Any]]) -> str:
    e, rows = html.escape, []
    for v in verdicts:
        mark = '<span class="yes">yes</span>' if v["exact"] else f'<span class="no">{"—" if v["refuses"] else "NO"}</span>'
        computes = e(v["refuses"]) if v["refuses"] else e(f"{v['method']} {v['factor'] or ''}".strip())
        said = "; ".join(filter(None, [v["differs"], f"ignores {', '.join(v['ignores'])}" if v.get("ignores") else "", v["note"]]))
        computes += f"<br><small>{e(said)}</small>" if said else ""
        rows.append([f"{e(v['runtime'])} <small>{e(v['version'])}</small>", mark, computes])
    return cells(rows, ["runtime", "as meant", "computes"])


def plan_html(p: dict[str, Any], command: str) -> str:
    e = html.escape
    copied = [f for f in p["files"] if f["way"] == "copy"]
    sent = [f for f in p["files"] if f["way"] == "upload"]
    exact = [f"{name} ({p['versions'].get(name, '?')})" for name, why in p["readers"].items() if why == "exact"]
    others = [f"{name}: {why}" for name, why in p["readers"].items() if why != "exact"]
    rows = [
        [
            "recipe",
            f"{e(p['method'])}, s = {p['scale']:g}: {p['original_context']:,} → <b>{p['context']:,}</b> tokens; "
            f"cos and sin × {p['attention_factor']:.6g}",
        ],
        ["exact in", e(", ".join(exact) or "none")],
        *[["not in", e(line)] for line in others],
        ["weights", f"{human(sum(f['bytes'] for f in copied))} in {len(copied)} files, copied on the server, byte for byte"],
        ["written", e(", ".join(f["file"] for f in sent)) + f" ({human(sum(f['bytes'] for f in sent))})"],
        *[["note", e(note)] for note in p["notes"]],
        ["by hand", f"<code>{e(command)}</code>"],
    ]
    return cells(rows)


def factors(p: dict[str, Any]) -> pd.DataFrame:
    """By pair, by how much its frequency is divided."""
    f = p["inv_freq"]
    rows = [(i, b / x if x else math.nan) for i, (b, x) in enumerate(zip(f["base"], f["extended"], strict=True))]
    return pd.DataFrame(rows, columns=["pair", "factor"])


def refused(e: Refused) -> str:
    hint = f"<br><small>{html.escape(e.hint)}</small>" if e.hint else ""
    return f'<div class="no" role="alert">{html.escape(e.message)}{hint}</div>'


# -- what is done -----------------------------------------------------------------------------------------------------


def steps(work: str, token: gr.OAuthToken | None, request: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """(what is shown meanwhile, the answer when it is there)."""
    began = time.monotonic()
    try:
        for said in do(work, token.token if token else None, request):
            seconds = f'<span aria-hidden="true">{time.monotonic() - began:.0f} s</span>'
            yield ("", said) if isinstance(said, dict) else (f'<p role="status"><em>{html.escape(said)} …</em> {seconds}</p>', None)
    except Refused as e:
        yield refused(e), None


def look(model: str, token: gr.OAuthToken | None, profile: gr.OAuthProfile | None) -> Iterator[tuple[Any, ...]]:
    """For facts, the accordion of runtimes, their table, the recipe's column, what was looked at, the factor and the repository."""
    name = model.strip()
    for said, answer in steps("look", token, {"model": name, "command": f"yarn-convert inspect {shlex.quote(name)}"}):
        if answer is None:
            yield said, HIDDEN, "", HIDDEN, "", gr.skip(), gr.skip()
            continue
        facts = answer["facts"]
        yield (
            facts_html(facts),
            SHOWN,
            runtimes_html(answer["runtimes"]),
            SHOWN,
            name,
            gr.update(info=f"4 makes {4 * facts['original_context']:,} tokens of {facts['original_context']:,}"),
            proposed(name, profile.username) if profile else "",
        )


def plan(token: gr.OAuthToken | None, *filled: Any) -> Iterator[tuple[Any, ...]]:
    """For the plan, the column below it, its curve, its card, and what was asked for."""
    try:
        asked = asked_of(*filled)
    except Refused as e:
        yield refused(e), HIDDEN, None, "", None
        return
    for said, p in steps("plan", token, asked.request()):
        if p is None:
            yield said, HIDDEN, None, "", None
        else:
            yield plan_html(p, asked.command), SHOWN, factors(p), p["card"], asked


def prove(asked: Asked, token: gr.OAuthToken | None, profile: gr.OAuthProfile | None) -> Iterator[tuple[Any, ...]]:
    """For the proof, what has passed it, and the button that publishes that."""
    for said, found in steps("prove", token, asked.request()):
        if found is None:
            yield said, None, gr.update(interactive=False)
            continue
        passed = found["verdict"] == "passed"
        why = "" if passed else f": {html.escape('; '.join(found['reasons']))}"
        then = "" if profile else "<p>Sign in above to publish it. The page opens anew then: inspect, plan and prove again.</p>"
        page = f'<iframe class="proof" sandbox title="The proof" srcdoc="{html.escape(found["page"])}"></iframe>'
        yield (
            f'<p class="verdict {"yes" if passed else "no"}">The twin {found["verdict"]}{why}</p>'
            f"<p>A twin is a tiny random model with this config.json. The weights and the tokenizer stay the base's.</p>"
            f"{then if passed else ''}{page}",
            asked if passed else None,
            gr.update(interactive=passed and profile is not None),
        )


def publish(proven: Asked | None, token: gr.OAuthToken | None, repo: str, private: bool) -> Iterator[str]:
    if proven is None or token is None:  # the button is off then, but who writes requests by hand need not press it
        yield refused(Refused("only what has passed its proof is published, by who is signed in"))
        return
    for said, done in steps("publish", token, replace(proven, repo=repo.strip(), private=private).request()):
        yield (
            said
            if done is None
            else f'<p class="verdict yes" role="status">Published: <a href="{html.escape(done["url"])}" target="_blank" rel="noopener">'
            f"{html.escape(done['repo'])}</a></p>"
        )


# -- the page ---------------------------------------------------------------------------------------------------------

SHOWN, HIDDEN = gr.update(visible=True), gr.update(visible=False)


def page() -> gr.Blocks:
    with gr.Blocks(title="yarn-convert: extend a model's context", analytics_enabled=False) as demo:
        looked, asked, proven = gr.State(""), gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                gr.Markdown(ABOUT)
            gr.LoginButton(scale=0, min_width=260, size="md")
        model = gr.Textbox(label="Model on the Hub", placeholder="Qwen/Qwen3-8B, or its address", elem_id="model", autofocus=True)
        looking = gr.Button("Inspect", variant="primary", elem_id="look")
        facts = gr.HTML(elem_id="facts")
        with gr.Accordion("Which runtimes compute it as it is", open=False, visible=False) as computed:
            runtimes = gr.HTML(elem_id="runtimes")
        with gr.Column(visible=False, elem_id="recipe") as chosen:
            filled = recipe()
            planning = gr.Button("Plan", variant="primary", elem_id="plan")
        planned = gr.HTML(elem_id="planned")
        with gr.Column(visible=False) as made:
            curve = gr.LinePlot(x="pair", y="factor", title="By what each pair's frequency is divided", height=240, elem_id="curve")
            with gr.Accordion("Its model card", open=False):
                card = gr.Code(language="markdown", label="README.md", elem_id="card")
            proving = gr.Button("Prove it by its twin", variant="primary", elem_id="prove")
            proof = gr.HTML(elem_id="proof", min_height=64)
            with gr.Group():
                repo = gr.Textbox("", label="Repository", info="It is created where there is none", placeholder="user/name", elem_id="repo")
                private = gr.Checkbox(True, label="Private", elem_id="private")
            publishing = gr.Button("Publish what has passed", variant="primary", interactive=False, elem_id="publish")
            published = gr.HTML(elem_id="published")
        # What is changed above makes what was planned, proved and published below another model's: it goes.
        below: list[Any] = [planned, made, asked, proven, proof, publishing, published]

        def gone() -> tuple[Any, ...]:
            return "", HIDDEN, None, None, "", gr.update(interactive=False), ""

        at_once: dict[str, Any] = PRIVATE | {"queue": False, "show_progress": "hidden"}
        proves = proving.click(prove_, [asked], [proof, proven, publishing], show_progress_on=proof, concurrency_limit=2, **PRIVATE)
        publishing.click(publish_, [proven, repo, private], [published], **QUICK)
        plans = planning.click(gone, None, below, cancels=proves, **at_once).then(
            plan_, [looked, *filled, repo, private], [planned, made, curve, card, asked], show_progress_on=planned, **QUICK
        )
        gr.on([x.input for x in filled], gone, None, below, cancels=[plans, proves], **at_once)
        for event in (looking.click, model.submit):
            event(gone, None, below, cancels=[plans, proves], **at_once).then(
                look_, [model], [facts, computed, runtimes, chosen, looked, filled[1], repo], show_progress_on=facts, **QUICK
            )
    return demo


def recipe() -> list[Any]:
    """How far and how: what `asked_of` takes between the model and the repository."""
    with gr.Row():
        by = gr.Radio(["factor", "context"], value="factor", label="How far", info="By a factor, or to a context", elem_id="by")
        factor = gr.Number(4, label="Factor s", info="4 makes 32,768 tokens of 8,192", minimum=1, elem_id="factor")
        context = gr.Textbox("128k", label="Context", info="In tokens: 131072, or 128k", visible=False, elem_id="context")
        method = gr.Dropdown(SPANNING, value="yarn", label="Method", info=when("yarn"), elem_id="method")
    short = gr.Checkbox(
        False, label="Short texts as before", elem_id="short",
        info="Texts within the model's own context keep its own frequencies, longer ones get the new (--short base); not all runtimes can",
    )  # fmt: skip
    with gr.Accordion("More", open=False):
        original = gr.Textbox(
            "", label="Original context L", elem_id="original",
            info="To how many tokens the model was trained (--original-context). Only where it does not say so itself, or says it wrongly",
        )  # fmt: skip
    by.change(lambda way: (gr.update(visible=way == "factor"), gr.update(visible=way == "context")), by, [factor, context], **PRIVATE)
    method.change(lambda name: gr.update(info=when(name)), method, method, show_progress="hidden", **PRIVATE)
    return [by, factor, context, method, short, original]


def when(method: str) -> str:
    """When one would choose it."""
    said = METHODS[method].when
    return said[:1].upper() + said[1:]


# Gradio hands the visitor's token and profile to parameters of these types.


def look_(model: str, token: gr.OAuthToken | None, profile: gr.OAuthProfile | None) -> Iterator[tuple[Any, ...]]:
    yield from look(model, token, profile)


def plan_(
    model: str, by: str, factor: float, context: str, method: str, short: bool, original: str, repo: str, private: bool,
    token: gr.OAuthToken | None,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    yield from plan(token, model, by, factor, context, method, short, original, repo, private)


def prove_(asked: Asked, token: gr.OAuthToken | None, profile: gr.OAuthProfile | None) -> Iterator[tuple[Any, ...]]:
    yield from prove(asked, token, profile)


def publish_(proven: Asked | None, repo: str, private: bool, token: gr.OAuthToken | None) -> Iterator[str]:
    yield from publish(proven, token, repo, private)


if __name__ == "__main__":
    if not (os.environ.get("SPACE_ID") or get_token()):
        raise SystemExit("error: outside a Space Gradio takes who is logged in here for the visitor\nhint: hf auth login")
    page().queue(max_size=32).launch(theme=THEME, css=CSS, footer_links=[], run_history=False, enable_monitoring=False)
