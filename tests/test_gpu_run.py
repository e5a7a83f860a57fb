"""The GPU run, without a GPU: all of it over a tiny model, its packing, what is left of it when it is cut off, and how it is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import CONTEXT

from yarn_convert.conversion import convert
from yarn_convert.options import Recipe

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks" / "gpu"
PARTS = {"prepare", "build", "cpu", "reference", "validate", "speed", "perplexity", "llama_cpp", "agreement", "finetune", "devices"}
ENV = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GPU))


def run(folder: Path, *words: object, scripts: Path = GPU) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(scripts / "run.py"), "--work", str(folder / "work"), "--out", str(folder / "out"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENV)
    results = folder / "out" / "gpu.json"
    assert results.exists(), done.stderr
    return done.returncode, json.loads(results.read_text())


@pytest.fixture
def base(make_model: Any, tmp_path: Path) -> Path:
    convert(str(make_model()), Recipe(method="none"), out="gguf", output=tmp_path / "base.gguf")
    return tmp_path / "base.gguf"


def test_all_of_it_runs_on_a_cpu(base: Path, tmp_path: Path) -> None:
    """And every part says what it measured; of a random model in bfloat16 only that it was judged."""
    for package in ("torch", "transformers", "llama_cpp", "accelerate", "tokenizers"):
        pytest.importorskip(package)
    code, found = run(tmp_path, "--device", "cpu", "--model", base, "--documents", 2, "--limit", 600)
    parts = found["parts"]
    assert (code, {p["state"] for p in parts.values()}, {*parts}) == (0, {"done"}, PARTS), parts
    figures = {name: part["figures"] for name, part in parts.items()}
    assert figures["prepare"]["model"] == {"name": "base", "original_context": CONTEXT, "context": 4 * CONTEXT, "scale": 4}
    assert all(w["nmse"] < 1e-9 for w in figures["agreement"]["float32"])  # the same on one device
    assert all(w["nmse"] > 1e-9 for w in figures["agreement"]["bfloat16"])
    assert {w["from"] is None for w in figures["reference"]["float32"]["wrong"].values()} == {False}
    assert figures["validate"]["whole"]["verdict"] == figures["llama_cpp"]["whole"]["verdict"] == "passed"
    assert figures["devices"]["matrix"]["verdict"] == "passed" and len(figures["devices"]["matrix"]["cells"]) >= 12
    assert [len(m["points"]) for m in figures["perplexity"].values()] == [7] * 7
    assert all(p["document_error"] > 0 for m in figures["perplexity"].values() for p in m["points"])
    speed = figures["speed"]["float32"]["loss"]
    assert speed["yarn-convert"] == pytest.approx(speed["transformers"], abs=1e-4)

    import tell

    told = tell.told(found | {"machine": found["machine"] | {"device": "cuda", "card": "A Card", "memory": 80 << 30}})
    assert told.startswith("On one A Card (80 GiB)") and "Not done" not in told
    for part, word in {
        "agreement": "against the CPU in float32",
        "llama_cpp": "llama.cpp:fa",
        "devices": "the twin's worst NMSE over",
        "perplexity": "± is",
        "speed": "ratio",
        "finetune": "held-out perplexity at",
    }.items():
        assert word in told, part


def other_parts(folder: Path, **parts: str) -> Path:
    """The run's scripts with these parts instead."""
    scripts = folder / "scripts"
    shutil.copytree(GPU, scripts, ignore=shutil.ignore_patterns("parts", "__pycache__", "work", "results"))
    (scripts / "parts").mkdir()
    for i, (name, text) in enumerate(parts.items()):
        (scripts / "parts" / f"{i}_{name}.py").write_text(text)
    return scripts


def part(body: str, on: str = "cpu", limit: float = 60, needs: tuple[str, ...] = ()) -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"import os, signal, time\nON, LIMIT, NEEDS = {on!r}, {limit}, {needs!r}\ndef main(job):\n{lines}"


def test_a_part_that_ends_badly_takes_no_figure_of_another_along(tmp_path: Path) -> None:
    scripts = other_parts(
        tmp_path,
        sound=part("job.put('figure', 1)"),
        killed=part("job.put('first', 2)\nos.kill(os.getpid(), signal.SIGKILL)", on="gpu"),
        slow=part("job.put('first', 3)\ntime.sleep(60)\njob.put('second', 4)", on="gpu", limit=2),
        raises=part("raise ValueError('no such luck')"),
        waits=part("job.put('figure', 5)", needs=("killed", "sound")),
        last=part("job.put('figure', 6)", on="gpu", needs=("sound",)),
    )
    code, found = run(tmp_path, "--device", "cpu", "--model", __file__, scripts=scripts)
    states = {name: (p["state"], p["figures"]) for name, p in found["parts"].items()}
    assert code == 1
    assert states == {
        "sound": ("done", {"figure": 1}),
        "killed": ("failed", {"first": 2}),
        "slow": ("timed out", {"first": 3}),
        "raises": ("failed", {}),
        "waits": ("skipped", {}),
        "last": ("done", {"figure": 6}),
    }
    assert "no such luck" in found["parts"]["raises"]["why"] and "killed" in found["parts"]["waits"]["why"]


def test_one_part_on_the_gpu_at_a_time_and_others_beside(tmp_path: Path) -> None:
    beside = "job.put('begin', time.time())\ntime.sleep(1)\njob.put('end', time.time())"
    scripts = other_parts(tmp_path, one=part(beside, on="gpu"), two=part(beside, on="gpu"), three=part(beside))
    _, found = run(tmp_path, "--device", "cpu", "--model", __file__, scripts=scripts)
    one, two, three = (found["parts"][name]["figures"] for name in ("one", "two", "three"))
    assert one["end"] < two["begin"] and three["begin"] < one["end"]


def test_parts_by_name_bring_what_they_need(tmp_path: Path) -> None:
    text = part("job.put('figure', 1)")
    scripts = other_parts(tmp_path, a=text, b=part("job.put('figure', 2)", needs=("a",)), c=text)
    _, found = run(tmp_path, "--device", "cpu", "--model", __file__, "--parts", "b", scripts=scripts)
    assert {name: p["state"] for name, p in found["parts"].items()} == {"a": "done", "b": "done"}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_cut_off_leaves_what_it_has(tmp_path: Path, how: signal.Signals) -> None:
    scripts = other_parts(tmp_path, quick=part("job.put('figure', 1)"), slow=part("job.put('first', 2)\ntime.sleep(60)"))
    command = [sys.executable, str(scripts / "run.py"), "--device", "cpu", "--model", __file__, "--work", str(tmp_path / "work")]
    results = tmp_path / "out" / "gpu.json"
    with subprocess.Popen(
        [*command, "--out", str(results.parent)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENV
    ) as process:
        deadline = time.monotonic() + 60
        while not (results.exists() and '"first": 2' in results.read_text() and '"figure": 1' in results.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(how)
        process.wait()
    parts = json.loads(results.read_text())["parts"]
    assert parts["quick"]["figures"] == {"figure": 1} and parts["slow"]["figures"] == {"first": 2}
    if how != signal.SIGKILL:
        assert parts["slow"]["state"] == "cut off"


def test_the_whole_has_a_limit(tmp_path: Path) -> None:
    scripts = other_parts(tmp_path, slow=part("job.put('first', 2)\ntime.sleep(60)"))
    code, found = run(tmp_path, "--device", "cpu", "--model", __file__, "--limit", 3, scripts=scripts)
    assert (code, found["parts"]["slow"]["state"]) == (1, "cut off")


def files(folder: Path, **sizes: int) -> dict[str, Path]:
    folder.mkdir()
    for name, size in sizes.items():
        (folder / name).write_bytes(os.urandom(size))
    return {name: folder / name for name in sizes}


def test_pieces_stay_below_their_limit_and_come_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pack

    monkeypatch.setattr(pack, "PIECE", 400_000)
    given = files(tmp_path / "in", a=150_000, b=150_000, c=150_000, d=10, e=100_000)
    pieces = pack.write(given, {"texts": False}, tmp_path / "out")
    assert len(pieces) == 2 and all(piece.stat().st_size <= 400_000 for piece in pieces)
    for piece in pieces:
        with tarfile.open(piece) as tar:
            tar.extractall(tmp_path / "there", filter="data")
    assert all((tmp_path / "there" / name).read_bytes() == path.read_bytes() for name, path in given.items())
    with pytest.raises(SystemExit, match="b has 300,001 bytes"):
        pack.distributed({"a": 1, "b": 300_001}, 300_000)


def test_a_piece_that_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    import pack

    scripts = other_parts(tmp_path, a=part("pass"))
    (piece,) = pack.write(files(tmp_path / "in", **{"model.0": 100, "model.1": 100}), {"texts": False}, tmp_path / "out")
    with tarfile.open(piece) as tar:
        tar.extractall(scripts, filter="data")
    (scripts / "model.1").write_bytes(b"x")
    command = [sys.executable, str(scripts / "run.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENV)
    assert (done.returncode, done.stderr.strip()) == (1, "model.1 is missing or damaged: unpack every piece into this folder")


def test_what_llama_cpp_is_built_from_is_packed_and_nothing_else() -> None:
    import pack

    kept = ["llama_cpp/llama.py", "vendor/llama.cpp/CMakeLists.txt", "vendor/llama.cpp/ggml/src/ggml-cuda/fattn.cu"]
    left = [
        "vendor/llama.cpp/ggml/src/ggml-vulkan/x.cpp",
        "vendor/llama.cpp/tools/server/server.cpp",
        "vendor/llama.cpp/models/v.gguf",
        "docs/x.md",
    ]
    assert all(pack.KEPT.match(name) for name in kept) and not any(pack.KEPT.match(name) for name in left)


def test_figures_of_no_gpu_are_not_told() -> None:
    import tell

    with pytest.raises(SystemExit, match="no GPU"):
        tell.told({"machine": {"device": "cpu", "card": None}, "parts": {}})


def test_parts_that_did_not_end_are_named() -> None:
    import tell

    machine = {
        "device": "cuda",
        "card": "A Card",
        "memory": 1 << 30,
        "cores": 2,
        "driver": "1",
        "cuda": "13",
        "torch": "2",
        "transformers": "5",
        "date": "",
    }
    told = tell.told({"machine": machine, "parts": {"build": {"state": "timed out", "why": "", "figures": {}}}})
    assert told.endswith("Not done: build (timed out).")


def test_the_docs_say_that_it_was_not_run_until_it_was(tmp_path: Path) -> None:
    import tell

    text = tell.DOCS.read_text("utf-8")
    now = text.partition(tell.BEGIN)[2].partition(tell.END)[0]
    assert now.strip().startswith(("GPU: not run yet.", "On one "))
    assert tell.placed(text, "On one A Card").replace("On one A Card", now.strip()) == text
    with pytest.raises(SystemExit, match="marks"):
        tell.placed("# other", "x")
