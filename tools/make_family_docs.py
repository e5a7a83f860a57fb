"""Writes the tables of docs/families.md from the rows of `families`; the prose around them is written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from yarn_convert import families
from yarn_convert.families import Family

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
BEGIN, END = "<!-- made by tools/make_family_docs.py: {} -->", "<!-- end of what is made -->"
WIDTH = 132  # characters of a line of names


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *dict.fromkeys(map(tuple, rows))]  # rows of one model type may say the same
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def within(f: Family) -> bool:
    """Whether only layers with a window turn, as the architecture usually is."""
    keys = {"block_count": 32, "attention.sliding_window": 4096}
    return f.gguf.farthest(keys) is not None


def carried(f: Family) -> str:
    """What a GGUF of this family can carry: YaRN keys always, and by tensors any table."""
    if within(f):
        return "its RoPE as it is"
    metadata = "metadata, usual m" if f.gguf.other_layers == "own" else "metadata"
    if f.gguf.freqs in ("applied", "required"):
        return metadata + "; any table"
    return metadata + ("; any table (pair)" if f.gguf.pair == "always" else " only")


def rotated(f: Family) -> str:
    if f.gguf.freqs == "required":
        return "the fastest pairs (p-RoPE)"
    if f.hf.partial is None:
        return f"a part: `{f.hf.head_key}`" if f.hf.latent else "whole heads"
    return f"`{f.hf.partial_key}`, {f.hf.partial:g} if absent"


SECOND = {
    "shared": "windows in some, extended alike",
    "own": "windows in some, whose own RoPE stays",
    "plain": "windows in some, whose RoPE stays",
}


def layers(f: Family) -> str:
    if "no_rope_layer_interval" in f.fixed:
        return f"every {f.fixed['no_rope_layer_interval'][0]}th without RoPE"
    if within(f):
        return "windows in some, the only ones with RoPE"
    if f.hf.windowed:
        return "alike; a window that its GGUF lacks"
    return SECOND[f.gguf.other_layers] if f.slides and f.gguf.other_layers in SECOND else "alike"


HEADS = {"optional": "tied or own", "required": "tied (written twice) or own", "never": "tied"}


def rows() -> str:
    head = ("model type", "GGUF architecture", "GGUF → HF", "a GGUF carries", "rotated", "layers", "head")
    return table(
        head,
        [
            (
                f"`{f.model_type}`",
                f"`{f.gguf_arch}`" + (" (`--gguf-arch`)" if f.gguf_arch != families.architectures(f)[0] else ""),
                f"as `{f.hf.run_as}`" if f.hf.run_as else "yes",
                carried(f),
                rotated(f),
                layers(f),
                HEADS[f.gguf.head],
            )
            for f in families.FAMILIES
        ],
    )


def evidence() -> str:
    return table(
        ("model type", "written as", "read in"), [(f"`{f.model_type}`", f"`{f.gguf_arch}`", f.evidence) for f in families.FAMILIES]
    )


def names(found: Iterable[str]) -> str:
    lines, line = [], ""
    for name in sorted(found):
        if len(line) + len(name) + 4 > WIDTH:
            lines.append(line.rstrip())
            line = ""
        line += f"`{name}`, "
    return "\n".join([*lines, line.removesuffix(", ")])


def unlisted() -> str:
    types = names(families.MODEL_TYPES.keys() - {f.model_type for f in families.FAMILIES})
    archs = names(families.ARCHS.keys() - {f.gguf_arch for f in families.FAMILIES})
    return f"From a folder to a folder, by `model_type`:\n{types}.\n\nFrom a GGUF to a GGUF, by architecture:\n{archs}."


def refused() -> str:
    reasons: dict[str, list[str]] = {}
    for name, why in families.REFUSED.items():
        reasons.setdefault(why, []).append(f"`{name}`")
    return table(("refused", "it …"), [(", ".join(sorted(found)), why) for why, found in reasons.items()])


MADE = {"the rows": rows, "evidence": evidence, "without a row": unlisted, "refused": refused}


def page(text: str) -> str:
    """`text` with what is made in the place of what stands between the marks."""
    for name, make in MADE.items():
        before, begin, rest = text.partition(BEGIN.format(name))
        _, end, after = rest.partition(END)
        assert begin and end, f"{PAGE.name} has no place for {name!r}"
        text = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
