"""lm-evaluation-harness on an HF output, by docs/evaluation.md's command, on a task of local files."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import CONTEXT, MakeModel

from yarn_convert.conversion import convert
from yarn_convert.options import Recipe

pytest.importorskip("lm_eval")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

TASK = Path(__file__).parent / "data" / "lm_eval"
DOC = Path(__file__).parents[1] / "docs" / "evaluation.md"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SHOTS = 2


def documented() -> list[str]:
    """The arguments of the first lm_eval command in the docs."""
    line = re.search(r"^lm_eval (.+)$", DOC.read_text(), re.MULTILINE)
    assert line
    return shlex.split(line[1])


def harness(model: Path, work: Path, **changed: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(scores, samples) of the documented command, with this model and task and the options named in `changed`."""
    command = documented()
    for option, value in {"tasks": "hamlet_lines", "num_fewshot": str(SHOTS), **changed}.items():
        command[command.index(f"--{option}") + 1] = value
    arguments = command.index("--model_args") + 1
    command[arguments] = re.sub(r"pretrained=[^,]+", lambda _: f"pretrained={model}", command[arguments])
    command += ["--include_path", str(TASK), "--log_samples", "--output_path", str(work / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *command],
        env=os.environ | OFFLINE | {"HF_HOME": str(work / "hf")}, cwd=TASK, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results, samples = (next((work / "out").rglob(name)) for name in ("results_*.json", "samples_*.jsonl"))
    scores = json.loads(results.read_text())["results"]["hamlet_lines"]
    return scores, sorted(map(json.loads, samples.read_text().splitlines()), key=lambda s: s["doc_id"])


def examples(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TASK / f"hamlet_{split}.jsonl").read_text().splitlines()]


def expected(base: Path, rope: dict[str, Any] | None, context: int) -> tuple[list[list[float]], int]:
    """Each choice's summed log-likelihood after the examples, one pass each, by the base's weights under `rope`; the longest prompt."""
    config = transformers.AutoConfig.from_pretrained(base)
    if rope:
        config.rope_parameters = {"rope_theta": 10000.0, **rope}
    model = transformers.AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32).eval()
    encode = transformers.AutoTokenizer.from_pretrained(base).encode
    shots = "".join(f"Line: {e['line']}\nNext: {e['choices'][e['answer']]}\n\n" for e in examples("train")[:SHOTS])
    sums, longest = [], 0
    for example in examples("test"):
        sums.append([])
        for choice in example["choices"]:
            before, ids = (encode(f"{shots}Line: {example['line']}\nNext:{end}", add_special_tokens=False) for end in ("", f" {choice}"))
            n, longest = len(ids) - len(before), max(longest, len(ids))
            seen = torch.tensor([ids[-context - 1 :]])
            with torch.no_grad():
                losses = model(seen[:, :-1]).logits[0, -n:].double().log_softmax(-1)
            sums[-1].append(float(losses.gather(1, seen[0, -n:, None]).sum()))
    return sums, longest


def of(samples: list[dict[str, Any]]) -> list[float]:
    return [float(response[0]) for sample in samples for (response,) in sample["resps"]]


def flat(sums: list[list[float]]) -> list[float]:
    return [value for row in sums for value in row]


def best(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


@pytest.mark.parametrize("batch", ["1", "4"])
def test_the_documented_command_scores_the_extended_model_over_its_whole_window(make_model: MakeModel, tmp_path: Path, batch: str) -> None:
    base = make_model()
    out = tmp_path / "long"
    convert(str(base), Recipe(scale=4.0), out="safetensors", output=out)
    scores, samples = harness(out, tmp_path, batch_size=batch)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
    sums, longest = expected(base, yarn, 4 * CONTEXT)
    assert 3 * CONTEXT < longest <= 4 * CONTEXT, "far beyond the base's window, and nothing is cut"
    assert of(samples) == pytest.approx(flat(sums), abs=1e-3)
    tests = examples("test")
    assert scores["acc,none"] == pytest.approx(sum(best(row) == e["answer"] for row, e in zip(sums, tests, strict=True)) / len(tests))
    by_length = [[v / len(c) for v, c in zip(row, e["choices"], strict=True)] for row, e in zip(sums, tests, strict=True)]
    assert scores["acc_norm,none"] == pytest.approx(
        sum(best(row) == e["answer"] for row, e in zip(by_length, tests, strict=True)) / len(tests)
    )


def test_without_the_conversion_the_base_is_cut_to_its_own_window(make_model: MakeModel, tmp_path: Path) -> None:
    base = make_model()
    _, samples = harness(base, tmp_path)
    cut, _ = expected(base, None, CONTEXT)
    assert of(samples) == pytest.approx(flat(cut), abs=1e-3)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
    assert max(abs(a - b) for a, b in zip(of(samples), flat(expected(base, yarn, 4 * CONTEXT)[0]), strict=True)) > 1, "or nothing was shown"
