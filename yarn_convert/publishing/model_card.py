"""The model card: what was extended, from what, how, who computes it and what was proved. From the manifest, honestly.

Prose that is there stays; our section is what lies between two markers, and is replaced as a whole.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.manifest import Manifest, manifest_path, read_manifest, recorded
from ..checkpoint.naming import HUB_ID
from ..checkpoint.source import resolve
from ..conversion.intention import intention_of
from ..errors import printable
from ..evaluation.text import figure, percent
from ..formats.files import TEMPLATES
from ..formats.general import card_text, front_matter, read_card, to_card
from ..formats.gguf_file import is_gguf
from ..formats.split import stem_of
from ..readers.switching import switches, whole_context
from ..rope import Rope, table
from .shelf import Shelved

if TYPE_CHECKING:
    import jinja2

BEGIN, END = "<!-- yarn-convert: begin -->", "<!-- yarn-convert: end -->"
SECTION = re.compile(r"<!-- yarn-convert: begin([^>]*) -->.*?<!-- yarn-convert: end\1 -->", re.DOTALL)
TABLE = "files:"  # what stands in the marks of the table of all files, where a model's name has no colon
INHERITED = ("license", "license_name", "license_link", "language")
QUANTIZED = ("Q", "IQ", "TQ", "MXFP")  # how the names of quantized types begin


def card(model: str, repo: str = "USER/NAME", existing: str | None = None) -> str:
    """The card of an output as text, with its metadata in front. `existing` is a card whose prose is kept; default: the
    README.md beside the weights. InputError for a model that cannot be read, FormatError for metadata that is no YAML."""
    c = open_checkpoint(resolve(model))
    manifest = read_manifest(c.source.path)
    return render(c, manifest or _manifest_of(c), repo, local_card(c.source.path) if existing is None else existing)


def local_card(model: Path) -> str:
    """The card that lies with a model: of a folder its README.md. The one beside a GGUF may be any project's, so it has to have a section
    of ours."""
    if not is_gguf(model):
        return read_card(model)
    text = read_card(model.parent)
    return text if SECTION.search(text) else ""


def _manifest_of(c: Checkpoint) -> Manifest:
    """What a manifest would say of a checkpoint that has none: nothing is known of its making."""
    meant = intention_of(c, None, None, None)
    return Manifest(recipe=recorded(meant.rope), context=meant.context)


def render(
    c: Checkpoint, manifest: Manifest, repo: str, existing: str, base: Mapping[str, Any] | None = None, files: Sequence[Shelved] = ()
) -> str:
    """`existing` with its metadata completed and our section put in, or replaced where it is. `base`: the metadata of the
    base's card, for what it alone knows. `files`: all GGUFs of the repository, where that is known: of two and more there is a table, and
    sections on others go."""
    data, prose = front_matter(existing)
    missing = {k: v for k, v in (base or {}).items() if k in INHERITED and k not in data}  # what is there keeps its order
    metadata = _metadata({**missing, **data}, c, manifest)
    if len(files) > 1 and data.get("base_model_relation") == "quantized" and data.get("base_model") == metadata.get("base_model"):
        metadata["base_model_relation"] = "quantized"  # one of them is
    prose = _only(prose.strip("\n"), files)
    body = _with_section(prose, c, lambda first: _section(c, manifest, repo, first and len(files) < 2))
    if len(files) > 1:
        body = _with_table(body, _template("model_files.md.j2").render(title=repo.rpartition("/")[2], files=files))
    return card_text(metadata, body)


def _only(prose: str, files: Sequence[Shelved]) -> str:
    """Without the table, and without the sections on files that are no longer in the repository."""
    names = {_key_of(f.name) for f in files}

    def kept(m: re.Match[str]) -> str:
        key = m[1].strip()
        return m[0] if not files or key in ("", *names) else ""

    return re.sub(r"\n{3,}", "\n\n", SECTION.sub(kept, prose)).strip("\n") if files else prose


def _with_table(body: str, table: str) -> str:
    """The table of all files in front of the first section, whose titles are then the files' own."""

    def titled(m: re.Match[str]) -> str:
        return re.sub(r"(?<=-->\n)# .*", f"# {m[1].strip()}", m[0], count=1) if m[1].strip() else m[0]

    body = SECTION.sub(titled, body)
    first = SECTION.search(body)
    at = first.start() if first else 0
    begin, end = (mark.replace(" -->", f" {TABLE} -->") for mark in (BEGIN, END))
    return f"{body[:at]}{begin}\n{table.strip()}\n{end}\n\n{body[at:]}"


def _with_section(prose: str, c: Checkpoint, section: Callable[[bool], str]) -> str:
    """The prose with our section on this model in it. A repository of GGUF files has one for each, which only its own file replaces:
    a card that a second quantization wrote would otherwise forget the first. `section` is told whether it is the first of them."""
    key = _key(c)
    begin, end = (mark.replace(" -->", f" {key} -->") if key else mark for mark in (BEGIN, END))
    found = [(m.start(), m.end(), m[0]) for m in SECTION.finditer(prose)]
    own = [s for s in found if s[2].startswith(begin) or (key and s[2].startswith(BEGIN) and f" {c.source.path.name} " in s[2])]
    start, stop, _ = own[0] if own else (found[-1][1],) * 2 + ("",) if found else (0, 0, "")
    text = f"{begin}\n{section(not found or found[0][0] >= start)}\n{end}"
    before, after = prose[:start], prose[stop:]
    if not own:
        before, after = before + ("\n\n" if before else ""), ("\n\n" if after and not after.startswith("\n") else "") + after
    return before + text + after


def _key(c: Checkpoint) -> str:
    """What tells the section of one GGUF from that of another in the same card; a folder is the only model of its repository."""
    return _key_of(stem_of(c.source.path)) if c.gguf else ""


def _key_of(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name)


def _metadata(old: Mapping[str, Any], c: Checkpoint, manifest: Manifest) -> dict[str, Any]:
    """The card's own metadata with what is known now: base_model and its relation, library, tags. License and language are
    the base's."""
    base = manifest.base.repo
    quantized = any(t.dtype.startswith(QUANTIZED) for t in c.tensors.values())
    known: dict[str, Any] = {}
    if base:
        known |= {"base_model": base, "base_model_relation": "quantized" if quantized else "finetune"}
    known |= {"library_name": "gguf" if c.gguf else "transformers", "pipeline_tag": old.get("pipeline_tag", "text-generation")}
    said = to_card(c.config) if c.gguf else {}
    known |= {k: v for k, v in said.items() if k in (*INHERITED, *(() if base else ("base_model",)), "datasets") and k not in old}
    extended = manifest.context > manifest.recipe.original_context
    method = (manifest.recipe.long_rope or manifest.recipe).method
    tags = [*(old.get("tags") or []), *(["gguf"] if c.gguf else []), *([method, "long-context"] if extended else [])]
    return {**old, **known, "tags": list(dict.fromkeys(tags))}


def _template(name: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=False, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        finalize=markdown,
    )  # fmt: skip
    environment.filters["gib"] = lambda n: f"{n / 2**30:.2f} GiB"
    environment.filters |= {"zip": zip, "figure": figure, "percent": percent, "code": code, "shell": shell}
    return environment.get_template(name)


def _section(c: Checkpoint, manifest: Manifest, repo: str, first: bool) -> str:
    rope, context = manifest.recipe.rope(), manifest.context
    original, long = rope.original_context, manifest.recipe.long_rope
    gguf = c.gguf is not None
    by = {name: switches(name, gguf, rope, context) for name, why in manifest.readers.items() if why == "exact" and context > original}
    switching = {name: how for name, how in by.items() if how}
    doubling = [original << k for k in range(40) if original << k < context]
    text = _template("model_card.md.j2").render(
        title=repo.rpartition("/")[2] if first or not c.gguf else stem_of(c.source.path), repo=repo, gguf=gguf,
        file=c.source.path.name, record=manifest_path(c.source.path).name,
        m=manifest, rope=rope, linked=HUB_ID.fullmatch(manifest.base.repo or ""),
        context=context, scale=context / original, multiplier=table(rope).multiplier, params=_params(rope), base=manifest.base,
        identical=manifest.weights.identical_to_base, readers=manifest.readers, versions=manifest.reader_versions,
        validation=manifest.validation, memory=[(n, c.kv_bytes(n)) for n in [*doubling, context]],
        short=whole_context("llama.cpp" if gguf else "vllm", original), named=long or rope, long=long, switching=switching,
        window=c.sliding_window, evaluation=manifest.evaluation or None, trainings=manifest.finetuning or [],
    )  # fmt: skip
    return str(text).strip()


class Code(str):
    """What stands between backticks, where nothing is markup but they."""


def code(text: object) -> Code:
    return Code(printable(str(text)).replace("`", "'"))


def shell(name: str) -> Code:
    return Code(shlex.quote(printable(name)))


def markdown(value: Any) -> Any:
    """A text, as a name in a file, that is shown as it stands: on one line, without markup, HTML, or a link of the renderer's own."""
    if not isinstance(value, str) or isinstance(value, Code):
        return value
    text = printable(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])|^[-+](?=\s)|(?<=^\d)[.)](?=\s))", r"\\\1", text)
    return re.sub(r"(?i)\bwww\.", "www&#46;", text.replace("://", ":&#47;&#47;"))


def _params(rope: Rope) -> dict[str, Any]:
    """Parameters in the order of their importance; lists are counted, not shown."""
    shown = {k: f"{len(v)} numbers" if isinstance(v, tuple) else v for k, v in rope.params.items()}
    return {"rope_theta": rope.theta, "rotary dimensions": rope.rotary_dim, **shown}
