"""ReRoPE and LM-Infinite: losses against numpy by the definition, pair of tokens by pair; what refuses them, and whom they refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel, split_options
from safetensors.numpy import load_file

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.compute import distances as computed
from yarn_convert.compute.distances import ready_at
from yarn_convert.compute.scorer import Torch
from yarn_convert.conversion import convert
from yarn_convert.errors import Unsupported, UsageError
from yarn_convert.evaluation import ResultJournal, measure_passkey, measure_perplexity
from yarn_convert.evaluation.found import typed
from yarn_convert.options import EvaluateOptions, PasskeyOptions, PerplexityOptions, Texts
from yarn_convert.rope import ATTENTION_METHODS, METHODS, Distances, distances_of

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_thread")

N = 90  # tokens: more than L
IDS = np.random.default_rng(5).integers(3, 200, N)


def turned(x: Any, angle: Any) -> Any:
    """A head's vector with dimension i turned with i + D/2, as Llama pairs them."""
    half = len(x) // 2
    a, b = x[:half], x[half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])


def by_definition(folder: Path, ids: Any, seen: Any, distance: Any, grown: int | None = None, heads: int = 4, kv_heads: int = 2) -> Any:
    """−ln p of ids[1:] by a Llama in float64, whose query i meets each key j that `seen(i, j)` at `distance(i, j)`."""
    w = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
    x = w["model.embed_tokens.weight"][ids]
    layers = 1 + max(int(k.split(".")[2]) for k in w if k.startswith("model.layers."))

    def norm(y: Any, name: str) -> Any:
        return y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * w[name]

    for i in range(layers):
        at = f"model.layers.{i}."
        h = norm(x, at + "input_layernorm.weight")
        q, k, v = (h @ w[f"{at}self_attn.{p}_proj.weight"].T for p in "qkv")
        size = q.shape[1] // heads
        omega = 10000.0 ** (-np.arange(0, size, 2) / size)
        out = np.zeros_like(q)
        for head in range(heads):
            group = head // (heads // kv_heads)
            own, kv = slice(head * size, (head + 1) * size), slice(group * size, (group + 1) * size)
            for m in range(len(ids)):
                keys = [j for j in range(m + 1) if seen(m, j)]
                more = max(1.0, math.log(m + 1) / math.log(grown)) if grown else 1.0
                scores = np.array([turned(q[m, own], distance(m, j) * omega) @ k[j, kv] for j in keys]) * more / math.sqrt(size)
                share = np.exp(scores - scores.max())
                out[m, own] = share / share.sum() @ v[keys][:, kv]
        x = x + out @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (h @ w[f"{at}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x = x + gate / (1 + np.exp(-gate)) * up @ w[at + "mlp.down_proj.weight"].T
    logits = norm(x, "model.norm.weight") @ w["lm_head.weight" if "lm_head.weight" in w else "model.embed_tokens.weight"].T
    logits -= logits.max(-1, keepdims=True)
    return np.log(np.exp(logits).sum(-1))[:-1] - logits[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize(
    ("name", "window", "seen", "grown"),
    [
        ("rerope", 20, lambda i, j: True, None),
        ("rerope-logn", 20, lambda i, j: True, CONTEXT),
        ("lm-infinite", 20, lambda i, j: i - j < 20 or j < 10, None),
        ("lm-infinite", None, lambda i, j: i - j < CONTEXT or j < 10, None),
    ],
)
def test_losses_are_those_of_the_definition(
    make_model: MakeModel, monkeypatch: Any, name: str, window: int | None, seen: Any, grown: Any
) -> None:
    monkeypatch.setattr(computed, "BLOCK", 16)  # several blocks, the last one shorter
    folder = make_model(layers=2)
    c = open_checkpoint(resolve(str(folder)))
    torch, d = Torch(c), distances_of(name, window, CONTEXT)
    ready_at(torch.reference, c.rope, d, len(IDS))
    found = torch.run(IDS, 1)
    expected = by_definition(folder, IDS, seen, lambda i, j: min(i - j, window or CONTEXT), grown)
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    base = torch.losses(c.rope, IDS, 1)
    np.testing.assert_allclose(
        found[: (window or CONTEXT) - 1], base[: (window or CONTEXT) - 1], rtol=2e-5
    )  # until a token is far, the base
    assert np.abs(found - base).max() > 1e-2


@pytest.mark.parametrize("name", ATTENTION_METHODS)
def test_a_window_of_the_whole_text_is_the_base(make_model: MakeModel, name: str) -> None:
    c = open_checkpoint(resolve(str(make_model())))
    torch, ids = Torch(c), IDS[:CONTEXT]
    base = torch.losses(c.rope, ids, 1)
    ready_at(torch.reference, c.rope, distances_of(name, CONTEXT, CONTEXT), len(ids))
    np.testing.assert_allclose(torch.run(ids, 1), base, rtol=1e-5)


def test_perplexity_compares_them_with_recipes(make_model: MakeModel, tmp_path: Path) -> None:
    """The longest pass serves all windows, as each alone gives it; L is what the user says; the journal tells them apart."""
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question. " * 40)
    s = EvaluateOptions(methods=("none", "yarn:2", "rerope:16", "rerope:1k", "lm-infinite"), texts=Texts(files=(tmp_path / "text.txt",)))
    journal, model = ResultJournal(), [str(make_model())]
    both = measure_perplexity(model, PerplexityOptions(s, windows=(48, 128)), journal)
    found = typed(both)
    assert [row.label for row in found.rows] == [*s.methods]
    base, yarn, near, whole, infinite = ([p.perplexity for p in row.points] for row in found.rows)
    assert whole == pytest.approx(base, rel=1e-5)
    assert near[1] != pytest.approx(base[1], rel=1e-3)
    assert infinite[0] == pytest.approx(base[0], rel=1e-5)
    assert infinite[1] != pytest.approx(base[1], rel=1e-3)
    assert both["rows"][4]["attention"] == {"window": CONTEXT, "first": 10, "grown": None} and "attention" not in both["rows"][1]
    alone = measure_perplexity(model, PerplexityOptions(s, windows=(48,)), ResultJournal())
    first = [row["points"][0]["perplexity"] for row in alone["rows"]]
    assert first == pytest.approx([points[0] for points in (base, yarn, near, whole, infinite)], rel=1e-5)


def test_what_they_refuse_and_what_refuses_them(make_model: MakeModel, tmp_path: Path, capsys: Any) -> None:
    model = str(make_model())
    assert not ATTENTION_METHODS.keys() & METHODS.keys()
    out = ["--method", "rerope", "--scale", "2", "-o", str(tmp_path / "out")]
    advise = ["evaluate", "advise", model, "--context", "128", "--method", "rerope"]
    for command in ([model, *out], ["finetune", model, "--text", model, *out], advise):
        with pytest.raises(SystemExit) as stopped:
            cli.main(command)
        err = capsys.readouterr().err
        assert stopped.value.code == 1 and "rerope changes the attention" in err and "evaluate perplexity" in err, command
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="keeps caches"):
        measure_passkey([model], PasskeyOptions(EvaluateOptions(methods=("lm-infinite",)), lengths=(64,)), ResultJournal())
    for wrong, says in (("rerope", "needs its window"), ("rerope:x", "no window in tokens"), ("rerope:0", "is none")):
        with pytest.raises(UsageError, match=says):
            measure_perplexity([model], PerplexityOptions(EvaluateOptions(methods=(wrong,)), windows=(32,)), ResultJournal())
    convert(model, **split_options(scale=2.0, output=tmp_path / "yarn", out="safetensors"))
    slides = str(make_model("slides", config={"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 32}))
    for other, why in ((str(tmp_path / "yarn"), "a scaling of its own, yarn"), (slides, "sees a window")):
        with pytest.raises(Unsupported, match=why):
            measure_perplexity([other], PerplexityOptions(EvaluateOptions(methods=("rerope:16",)), windows=(32,)), ResultJournal())


def test_distances_are_plain_numbers() -> None:
    assert distances_of("lm-infinite", None, 4096) == Distances(4096, 10)
    assert distances_of("rerope-logn", 512, 4096) == Distances(512, None, 4096)
