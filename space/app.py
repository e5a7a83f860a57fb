"""yarn-convert as a page: look at a model on the Hub, plan its extension, prove it, and publish it, without downloading its weights."""

from __future__ import annotations

import html
import math
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
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
.facts td:first-child { white-space: nowrap; opacity: .75; padding-right: 1rem }
.scroll { overflow-x: auto }
.no { color: #c0392b; font-weight: 600 } .dark .no { color: #ff8674 }
.yes { color: #218c53; font-weight: 600 } .dark .yes { color: #6fd39b }
iframe.proof { width: 100%; height: 42rem; border: 0; border-radius: .5rem }
"""
ABOUT = """# yarn-convert
Extend the context of a RoPE language model so that runtimes compute what was meant. Name a model, see what is in it and who computes it,
choose how far, prove it, and publish it to your account: its weights are copied on the server and never come here."""


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
    top = "".join(f"<th>{html.escape(h)}</th>" for h in head or [])
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="facts">{f"<tr>{top}</tr>" if top else ""}{body}</table></div>'


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


def token_of(token: gr.OAuthToken | None) -> str | None:
    return token.token if token else None


def steps(work: str, token: gr.OAuthToken | None, request: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """(what is shown above, the answer when it is there)."""
    try:
        for said in do(work, token_of(token), request):
            yield ("", said) if isinstance(said, dict) else (f"<em>{html.escape(said)} …</em>", None)
    except Refused as e:
        yield refused(e), None


def look(model: str, token: gr.OAuthToken | None) -> Iterator[tuple[Any, ...]]:
    name = model.strip()
    for said, answer in steps("look", token, {"model": name, "command": f"yarn-convert inspect {shlex.quote(name)}"}):
        if answer is None:
            yield said, "", "", gr.update(visible=False), None
        else:
            yield "", facts_html(answer["facts"]), runtimes_html(answer["runtimes"]), gr.update(visible=True), None


def plan(token: gr.OAuthToken | None, *filled: Any) -> Iterator[tuple[Any, ...]]:
    nothing = ("", gr.update(visible=False), "", None, gr.update(interactive=False), gr.update(interactive=False), "")
    try:
        asked = asked_of(*filled)
    except Refused as e:
        yield (refused(e), *nothing)
        return
    for said, p in steps("plan", token, asked.request()):
        if p is None:
            yield (said, *nothing)
        else:
            data = factors(p)
            yield (
                "",
                plan_html(p, asked.command),
                gr.update(value=data, visible=True),
                p["card"],
                asked,
                gr.update(interactive=True),
                gr.update(interactive=False),
                "",
            )


def prove(asked: Asked, token: gr.OAuthToken | None, profile: gr.OAuthProfile | None) -> Iterator[tuple[Any, ...]]:
    for said, found in steps("prove", token, asked.request()):
        if found is None:
            yield said, gr.update(interactive=False)
            continue
        passed = found["verdict"] == "passed"
        why = "" if passed else f": {html.escape('; '.join(found['reasons']))}"
        page = f'<iframe class="proof" sandbox title="The proof" srcdoc="{html.escape(found["page"])}"></iframe>'
        yield (
            f'<p class="verdict {"yes" if passed else "no"}">The twin {found["verdict"]}{why}</p>{page}',
            gr.update(interactive=passed and profile is not None),
        )


def publish(asked: Asked, token: gr.OAuthToken | None, repo: str, private: bool) -> Iterator[str]:
    request = Asked(asked.model, asked.recipe, repo.strip(), private).request()
    for said, done in steps("publish", token, request):
        yield (
            said
            if done is None
            else f'<p class="verdict yes">Published: <a href="{html.escape(done["url"])}">{html.escape(done["repo"])}</a></p>'
        )


# -- the page ---------------------------------------------------------------------------------------------------------


def page() -> gr.Blocks:
    with gr.Blocks(title="yarn-convert") as demo:
        asked = gr.State(None)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                gr.Markdown(ABOUT)
            gr.LoginButton(scale=0, min_width=260, size="md")
        with gr.Row(equal_height=True):
            model = gr.Textbox(label="Model", placeholder="Qwen/Qwen3-8B, or its address", scale=4, elem_id="model", autofocus=True)
            looking = gr.Button("Look", variant="primary", scale=1, elem_id="look")
        said = gr.HTML(elem_id="said")
        facts = gr.HTML(elem_id="facts")
        with gr.Accordion("Who computes it as it is", open=False):
            runtimes = gr.HTML(elem_id="runtimes")
        with gr.Column(visible=False, elem_id="recipe") as chosen:
            with gr.Row():
                by = gr.Radio(["factor", "context"], value="factor", label="How far", elem_id="by")
                factor = gr.Number(4, label="Factor s", minimum=1, elem_id="factor")
                context = gr.Textbox("128k", label="Context, in tokens", visible=False, elem_id="context")
                method = gr.Dropdown(SPANNING, value="yarn", label="Method", elem_id="method")
            short = gr.Checkbox(False, label="Short texts as before: two lists, with ntk-by-parts to the last bit", elem_id="short")
            with gr.Accordion("More", open=False):
                original = gr.Textbox("", label="L, where the model does not say to how many tokens it was trained", elem_id="original")
            planning = gr.Button("Plan", variant="primary", elem_id="plan")
            planned_said, planned_html = gr.HTML(elem_id="plan-said"), gr.HTML(elem_id="planned")
            curve = gr.LinePlot(
                x="pair", y="factor", title="What each pair's frequency is divided by", visible=False, height=240, elem_id="curve"
            )
            proving = gr.Button("Prove it", interactive=False, elem_id="prove")
            proof = gr.HTML(elem_id="proof")
            with gr.Accordion("Publish", open=True):
                with gr.Row():
                    repo = gr.Textbox("", label="Repository", placeholder="USER/name", elem_id="repo")
                    private = gr.Checkbox(True, label="Private", elem_id="private")
                gr.Markdown("What has passed its proof can be published by who is signed in.")
                publishing = gr.Button("Publish", variant="primary", interactive=False, elem_id="publish")
                published = gr.HTML(elem_id="published")
            with gr.Accordion("Its model card", open=False):
                card = gr.Code(language="markdown", label="README.md", elem_id="card")
        filled = [model, by, factor, context, method, short, original, repo, private]
        by.change(
            lambda way: (gr.update(visible=way == "factor"), gr.update(visible=way == "context")),
            by,
            [factor, context],
            api_visibility="private",
        )
        for event in (looking.click, model.submit):
            event(look_, [model], [said, facts, runtimes, chosen, asked], api_visibility="private").then(
                home_, [model], [repo], api_visibility="private"
            )
        planning.click(
            plan_, filled, [planned_said, planned_html, curve, card, asked, proving, publishing, proof], api_visibility="private"
        )
        proving.click(prove_, [asked], [proof, publishing], api_visibility="private")
        publishing.click(publish_, [asked, repo, private], [published], api_visibility="private")
    return demo


# Gradio hands the visitor's token and profile to parameters of these types.


def look_(model: str, token: gr.OAuthToken | None) -> Iterator[tuple[Any, ...]]:
    yield from look(model, token)


def home_(model: str, profile: gr.OAuthProfile | None) -> str:
    return proposed(model, profile.username if profile else "USER")


def plan_(
    model: str, by: str, factor: float, context: str, method: str, short: bool, original: str, repo: str, private: bool,
    token: gr.OAuthToken | None,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    yield from plan(token, model, by, factor, context, method, short, original, repo, private)


def prove_(asked: Asked, token: gr.OAuthToken | None, profile: gr.OAuthProfile | None) -> Iterator[tuple[Any, ...]]:
    yield from prove(asked, token, profile)


def publish_(asked: Asked, repo: str, private: bool, token: gr.OAuthToken | None) -> Iterator[str]:
    yield from publish(asked, token, repo, private)


if __name__ == "__main__":
    if not (os.environ.get("SPACE_ID") or get_token()):
        raise SystemExit("error: outside a Space Gradio takes who is logged in here for the visitor\nhint: hf auth login")
    page().queue(default_concurrency_limit=2).launch(css=CSS, footer_links=[])
