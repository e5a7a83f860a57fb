"""Put the results of a GPU run into docs/benchmarks.md, between the two marks that are there.

python tell.py results/gpu.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from job import HERE

DOCS = HERE.parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- the GPU run: benchmarks/gpu/tell.py writes what follows -->", "<!-- the end of it -->"
Figures = Mapping[str, Any]


def told(found: Figures) -> str:
    """The results as Markdown. What was not run, or did not end, is said by name."""
    machine, parts = found["machine"], found["parts"]
    if machine["device"] != "cuda" or not machine["card"]:
        raise SystemExit("these figures are of no GPU")
    where = (
        f"{machine['card']} ({machine['memory'] / 2**30:.0f} GiB), {machine['cores']} cores, driver {machine['driver']}, CUDA {machine['cuda']}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}, {machine['date']}"
    )
    sections = [section for name, tell in SECTIONS.items() if (figures := parts.get(name, {}).get("figures")) for section in tell(figures)]
    missing = [
        f"{name} ({part['state']}{': ' + part['why'] if part['why'] else ''})" for name, part in parts.items() if part["state"] != "done"
    ]
    sections += [["Not done: " + "; ".join(missing) + "."]] if missing else []
    return "\n\n".join(["\n".join(lines) for lines in [[f"On one {where}:"], *sections]])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _prepare(f: Figures) -> Iterator[list[str]]:
    m = f["model"]
    yield [f"The model is {m['name']}, {m['original_context']:,} tokens extended {m['scale']} times."]


def _reference(f: Figures) -> Iterator[list[str]]:
    rows = [
        [
            f"reference in {dtype}", f"{r['tokens']:,}", f"{r['seconds']:.2f} s", f"{r['tokens'] / r['seconds']:,.0f}", _gib(r["peak_device_bytes"]),
            ", ".join(f"{name} at {w['from']:,}" if w["from"] is not None else f"**{name}: not**" for name, w in r["wrong"].items()),
        ]
        for dtype in ("float32", "bfloat16") if (r := f.get(dtype))
    ]  # fmt: skip
    yield table(["", "tokens", "a pass", "tokens/s", "peak memory", "wrong recipes told apart from position"], rows)
    if t := f.get("tf32"):
        yield [f"With TF32, which is off, the same pass takes {t['seconds']:.2f} s and is off by an NMSE of {t['nmse']:.1e}."]


def _agreement(f: Figures) -> Iterator[list[str]]:
    rows = [[dtype, _span(w), f"{w['nmse']:.1e}", f"{w['kl']:.1e}", f"{w['top1']:.2%}"] for dtype, windows in f.items() for w in windows]
    yield table(["against the CPU in float32", "positions", "NMSE", "mean KL", "same top"], rows)


def _validate(f: Figures) -> Iterator[list[str]]:
    rows = []
    for run, v in f.items():
        for s in v["studies"]:
            for r in s["runtimes"]:
                worst = {m: max((w[m] for w in r["windows"] if w[m] is not None), default=None) for m in ("nmse", "kl")}
                rows.append(
                    [
                        f"{r['runtime']} {r.get('version') or ''} on {r.get('device') or '?'}", f"{s['kind']}, reference in {s['reference']['dtype']}",
                        f"{s['tokens']:,}", r["verdict"], _small(worst["nmse"]), _small(worst["kl"]), f"{r['tolerance']['nmse']:.0e}",
                        f"{r['seconds']:.1f} s" if r.get("seconds") else "", _gib(r.get("peak_device_bytes")),
                    ]
                )  # fmt: skip
        if v["verdict"] != "passed":
            rows.append([f"**{run}: {v['verdict']}**", "; ".join(v["reasons"]), *[""] * 7])
    yield table(["runtime", "weights", "tokens", "", "worst NMSE", "worst KL", "tolerance", "time", "peak memory"], rows)


def _devices(f: Figures) -> Iterator[list[str]]:
    m = f["matrix"]
    modes = list(dict.fromkeys(c["mode"] for c in m["cells"]))
    rows = []
    for device, dtype in dict.fromkeys((c["device"], c["dtype"]) for c in m["cells"]):
        cells = {c["mode"]: c for c in m["cells"] if (c["device"], c["dtype"]) == (device, dtype)}
        worst = [
            _small(cells[mode]["nmse"]) + ("" if cells[mode]["verdict"] == "passed" else f" **{cells[mode]['verdict']}**") for mode in modes
        ]
        rows.append([f"{device}, {dtype}", *worst])
    yield table([f"the twin's worst NMSE over {m['tokens']:,} tokens", *modes], rows)
    yield [f"The matrix: {m['verdict']}" + "".join(f"; {reason}" for reason in m["reasons"]) + "."]


def _speed(f: Figures) -> Iterator[list[str]]:
    rows = []
    for dtype, s in f.items():
        mine, theirs = (s["tokens_per_second"][k] for k in ("yarn-convert", "transformers"))
        what = f"{s['windows']} windows of {s['width']:,} tokens, stride {s['stride']:,}, {dtype}"
        rows.append(
            [
                what,
                f"{mine:,.0f} tokens/s",
                f"{theirs:,.0f} tokens/s",
                f"{mine / theirs:.2f} ×",
                f"{s['loss']['yarn-convert'] - s['loss']['transformers']:+.1e}",
            ]
        )
    yield table(["`evaluate perplexity`", "yarn-convert", "the plain loop of transformers", "ratio", "difference of the mean loss"], rows)


def _perplexity(f: Figures) -> Iterator[list[str]]:
    windows = [p["window"] for p in next(iter(f.values()))["points"]]
    rows = [[name, *(_spread(p) for p in m["points"]), f"{m['seconds']:.0f} s"] for name, m in f.items()]
    documents = ", ".join(next(iter(f.values()))["documents"])
    yield table(["perplexity at", *(f"{w:,}" for w in windows), "time"], rows)
    yield [f"In bf16, over {documents}; ± is the standard error with documents as clusters."]


def _build(f: Figures) -> Iterator[list[str]]:
    if "seconds" in f:
        yield [f"llama.cpp with CUDA was built there in {f['seconds']:.0f} s."]


def _finetune(f: Figures) -> Iterator[list[str]]:
    measured = {name: v for name, v in f.items() if name.startswith("speed at ")}
    rows = [
        [f"{int(name.split()[-1]):,}", f"{v['tokens_per_second']:,.0f}", f"{v['mfu']:.0%}", _gib(v["memory"])]
        for name, v in measured.items()
    ]
    yield table(["`finetune`, segments of", "tokens/s", "MFU", "peak memory"], rows)
    tuned = {name: v for name, v in f.items() if name not in measured}
    if tuned:
        windows = [p["window"] for p in next(iter(tuned.values()))["points"]]
        rows = [
            [f"{name}, {when}", *(f"{p[when]:.2f}" for p in v["points"]), f"{v['tokens']:,}" if when == "after" else ""]
            for name, v in tuned.items() for when in ("before", "after")
        ]  # fmt: skip
        yield table(["held-out perplexity at", *(f"{w:,}" for w in windows), "tokens trained"], rows)


SECTIONS = {
    "prepare": _prepare, "reference": _reference, "agreement": _agreement, "validate": _validate, "build": _build, "llama_cpp": _validate,
    "devices": _devices,
    "speed": _speed, "perplexity": _perplexity, "finetune": _finetune,
}  # fmt: skip


def _span(w: Figures) -> str:
    return f"{w['start']:,}–{w['end'] - 1:,}"


def _gib(n: int | None) -> str:
    return f"{n / 2**30:.2f} GiB" if n else ""


def _small(x: float | None) -> str:
    return "" if x is None else f"{x:.1e}"


def _spread(p: Figures) -> str:
    error = p.get("document_error") or p.get("standard_error")
    return f"{p['perplexity']:.1f}" + (f" ± {error:.1f}" if error else "")


def placed(text: str, section: str) -> str:
    """`text` with `section` between the marks, which it must have."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the marks are not in it: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=DOCS)
    given = parser.parse_args()
    section = told(json.loads(given.results.read_text("utf-8")))
    given.docs.write_text(placed(given.docs.read_text("utf-8"), section), "utf-8")
    print(section)


if __name__ == "__main__":
    main()
