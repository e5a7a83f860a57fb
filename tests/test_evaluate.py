"""What a conversion is worth: windows by literal numbers, losses against plain loops in transformers and llama.cpp."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel, split_options, tiny_weights
from hypothesis import given
from hypothesis import strategies as st
from test_report import Page

from yarn_convert import runtimes
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.compute.growing import Steps, greedy
from yarn_convert.compute.identity import identity
from yarn_convert.compute.scorer import RuntimeScorer, Torch
from yarn_convert.compute.tokens import TEXT, tokenizer_of
from yarn_convert.conversion import convert
from yarn_convert.errors import InputError, UsageError
from yarn_convert.evaluation import (  # fmt: skip
    ResultJournal,
    measure_advice,
    measure_passkey,
    measure_perplexity,
    measure_temperature,
    retrieval,
)
from yarn_convert.evaluation.found import typed
from yarn_convert.evaluation.passkeys import FILLING, prompt
from yarn_convert.evaluation.text import labels_of
from yarn_convert.evaluation.text import lines as evaluation_lines
from yarn_convert.evaluation.windows import NOTHING, Losses, Pass, Window, document_error, mean_of_window_means, passes, segments, sliding
from yarn_convert.options import AdviseOptions, EvaluateOptions, PasskeyOptions, PerplexityOptions, Recipe, TemperatureOptions, Texts
from yarn_convert.publishing.model_card import card
from yarn_convert.rope import Rope, table
from yarn_convert.runtimes.environments import python_of
from yarn_convert.runtimes.kept import Kept

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")


pytestmark = pytest.mark.usefixtures("one_thread")


def text_ids(folder: Path, n: int) -> np.ndarray:
    ids = tokenizer_of(open_checkpoint(resolve(str(folder)))).encode(TEXT.read_text(), add_special_tokens=False).ids
    return np.asarray(ids[:n], dtype=np.int64)


def settings(**flat: Any) -> EvaluateOptions:
    """Of a measure, with the recipe's options among the others."""
    recipe = Recipe(**{k: flat.pop(k) for k in ("scale", "context", "original_context") if k in flat})
    return EvaluateOptions(recipe=recipe, **flat)


def measured(models: list[Path], wish: PerplexityOptions, journal: ResultJournal | None = None, **flat: Any) -> dict[str, Any]:
    found = measure_perplexity([str(m) for m in models], replace(wish, settings=settings(**flat)), journal or ResultJournal())
    assert typed(found).to_dict().keys() == {*found, "created", "versions", "hardware"}
    return found


def values(result: dict[str, Any], name: str = "perplexity") -> list[list[float]]:
    return [[p[name] for p in row["points"]] for row in result["rows"]]


def extended(folder: Path, out: Path, **options: Any) -> Path:
    convert(
        str(folder), **split_options(**{"scale": 4.0, "output": out, "out": "gguf" if out.suffix == ".gguf" else "safetensors", **options})
    )
    return out


def windowed_loop(folder: Path, ids: np.ndarray, width: int, stride: int) -> list[tuple[float, int]]:
    """(mean loss, tokens) of each window by transformers alone, the well-known loop: the model's own loss, labels of −100."""
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found, counted = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + width, len(ids))
        batch = torch.from_numpy(ids[begin:end])[None]
        labels = batch.clone()
        labels[:, : -(end - counted)] = -100
        with torch.no_grad():
            loss = float(net(batch, labels=labels).loss)
        found.append((loss, end - max(counted, begin + 1)))
        counted = end
        if end == len(ids):
            break
    return found


# -- windows: pure arithmetic -----------------------------------------------------------------------------------------


def test_windows_are_these() -> None:
    assert sliding(10, 4, 2) == [Window(0, 4, 1), Window(2, 6, 4), Window(4, 8, 6), Window(6, 10, 8)]
    assert sliding(9, 4, 2) == [Window(0, 4, 1), Window(2, 6, 4), Window(4, 8, 6), Window(6, 9, 8)], "the last one is shorter"
    assert sliding(10, 4, 4) == [Window(0, 4, 1), Window(4, 8, 5), Window(8, 10, 9)], "nothing predicts a window's first token"
    assert sliding(4, 4, 2) == sliding(4, 100, 2) == [Window(0, 4, 1)]
    assert sliding(8, 5, 2, lead=1) == [Window(0, 4, 0), Window(2, 6, 4), Window(4, 8, 6)], "BOS predicts the first token, and takes room"


def test_windows_with_one_table_share_passes() -> None:
    both = [*sliding(8, 4, 2), *sliding(8, 8, 2)]
    assert passes(both, lambda n: None, 0) == [Pass(0, 8, ((1, 4), (1, 8))), Pass(2, 6, ((4, 6),)), Pass(4, 8, ((6, 8),))]
    assert passes(both, lambda n: n, 0) == [
        Pass(0, 4, ((1, 4),)), Pass(2, 6, ((4, 6),)), Pass(4, 8, ((6, 8),)), Pass(0, 8, ((1, 8),)),
    ]  # fmt: skip
    two = [*sliding(7, 4, 3, 1), *sliding(7, 6, 5, 1), *sliding(7, 8, 7, 1)]
    assert passes(two, lambda n: n > 5, 1) == [
        Pass(0, 3, ((0, 3),)), Pass(3, 6, ((3, 6),)), Pass(6, 7, ((6, 7),)), Pass(0, 7, ((0, 5), (0, 7))), Pass(5, 7, ((5, 7),)),
    ]  # fmt: skip


@given(n=st.integers(2, 400), width=st.integers(2, 100), lead=st.integers(0, 1), data=st.data())
def test_every_token_is_counted_once_with_the_context_that_was_promised(n: int, width: int, lead: int, data: Any) -> None:
    if width - lead < 2:
        return
    stride = data.draw(st.integers(1, width - lead))
    windows = sliding(n, width, stride, lead)
    alone = {k * width for k in range(n)} if stride == width else {0}  # a window's first token that no window before it had
    assert [t for w in windows for t in range(w.first, w.end)] == [t for t in range(n) if lead or t not in alone]
    assert all(w.end - w.begin <= width - lead for w in windows)
    assert all(w.first - w.begin >= width - lead - stride and w.first - w.begin + lead > 0 for w in windows[1:])


@pytest.mark.parametrize(("n", "width", "stride"), [(10, 4, 5), (10, 4, 0), (10, 1, 1), (1, 4, 2)])
def test_a_stride_that_skips_tokens_is_refused(n: int, width: int, stride: int) -> None:
    with pytest.raises(UsageError):
        sliding(n, width, stride)


def test_segments_are_these() -> None:
    assert segments(10, 4) == [(1, 2), (2, 5), (5, 7), (7, 10)]
    assert segments(8, 2, first=0) == [(0, 4), (4, 8)]


def test_sums_and_errors_by_hand() -> None:
    a, b = Losses(3, 6.0, 14.0), Losses(1, 4.0, 16.0)  # losses 1, 2, 3 and 4
    both = sum([a, b], NOTHING)
    assert both.perplexity == math.exp(2.5)
    assert both.standard_error == pytest.approx(math.exp(2.5) * np.std([1, 2, 3, 4], ddof=1) / 2)
    assert mean_of_window_means([a, b]) == math.exp(3.0)
    assert document_error([a, b]) == pytest.approx(math.exp(2.5) * math.sqrt(2 * (1.5**2 + 1.5**2)) / 4)
    assert document_error([a]) is None


# -- perplexity: against who computes it otherwise --------------------------------------------------------------------


@pytest.mark.parametrize(("width", "stride"), [(2 * CONTEXT, 32), (2 * CONTEXT, 2 * CONTEXT), (50, 7)])
def test_sliding_windows_equal_a_plain_loop_in_transformers(make_model: MakeModel, tmp_path: Path, width: int, stride: int) -> None:
    base, n = make_model(), 300
    loop = windowed_loop(extended(base, tmp_path / "yarn"), text_ids(base, n), width, stride)
    (row,) = measured([base], PerplexityOptions(windows=(width,), tokens=n, stride=stride), methods=("yarn",), scale=4.0)["rows"]
    (point,) = row["points"]
    assert (point["windows"], point["tokens"]) == (len(loop), sum(k for _, k in loop))
    assert point["loss"] == pytest.approx(np.average([x for x, _ in loop], weights=[k for _, k in loop]), rel=1e-5)
    assert point["mean_of_window_means"] == pytest.approx(math.exp(np.mean([x for x, _ in loop])), rel=1e-5)


def test_truncated_documents_equal_a_plain_loop_at_each_length(make_model: MakeModel, tmp_path: Path) -> None:
    base, lengths = make_model(), (40, CONTEXT, 3 * CONTEXT)
    out = extended(base, tmp_path / "linear", method="linear", carry="metadata")
    loops = [windowed_loop(out, text_ids(base, n), n, n)[0][0] for n in lengths]
    assert values(measured([base], PerplexityOptions(windows=lengths), methods=("linear",), scale=4.0), "loss") == [
        pytest.approx(loops, rel=1e-5)
    ]


def test_a_method_over_the_base_is_the_converted_model_as_it_is(make_model: MakeModel, tmp_path: Path) -> None:
    base, wish = make_model(), PerplexityOptions(windows=(CONTEXT, 4 * CONTEXT))
    methods = ("linear", "ntk-aware", "ntk-by-parts", "yarn")
    over = values(measured([base], wish, methods=methods, scale=4.0))
    files = [extended(base, tmp_path / f"{m}.gguf", method=m) for m in methods]
    assert over == [pytest.approx(row, rel=1e-5) for row in values(measured(files, wish))]
    assert len({round(row[1], 6) for row in over}) == len(methods), "they would be the same if no recipe was served"


def test_dynamic_methods_take_the_length_of_each_window(make_model: MakeModel) -> None:
    base, windows = make_model(), (CONTEXT // 2, CONTEXT, 2 * CONTEXT, 3 * CONTEXT)
    dynamic = values(
        measured([base], PerplexityOptions(windows=windows), methods=("none", "dynamic-yarn", "dynamic-linear", "dynamic-ntk"))
    )
    for row, method in zip(dynamic[1:], ("yarn", "linear", "ntk-aware"), strict=True):
        (two,), (three,) = (
            values(measured([base], PerplexityOptions(windows=(w,)), methods=(method,), scale=w / CONTEXT)) for w in windows[2:]
        )
        assert row == pytest.approx([*dynamic[0][:2], *two, *three], rel=1e-6)


def test_a_base_with_longrope_and_its_extension_are_what_transformers_computes_at_every_length(tmp_path: Path) -> None:
    """The base switches lists at L; its extension has the long one always, measured over the base or as the output is."""
    from family_models import make

    base, windows = make("phi3/longrope", tmp_path / "base"), (CONTEXT // 2, CONTEXT, CONTEXT + 1, 4 * CONTEXT)
    out = extended(base, tmp_path / "out", scale=2.0)
    for folder, ours in (
        (base, measured([base], PerplexityOptions(windows=windows))),
        (out, measured([out], PerplexityOptions(windows=windows))),
    ):
        loops = [windowed_loop(folder, text_ids(base, n), n, n)[0][0] for n in windows]
        assert values(ours, "loss") == [pytest.approx(loops, rel=1e-5)]
    assert values(measured([base], PerplexityOptions(windows=windows), methods=("yarn",), scale=2.0)) == [
        pytest.approx(values(ours)[0], rel=1e-6)
    ]


def test_a_dynamic_method_on_latent_attention_is_the_static_one_of_that_length(tmp_path: Path) -> None:
    from family_models import make

    base, windows = make("deepseek_v2", tmp_path / "base"), (2 * CONTEXT, 3 * CONTEXT)
    static = [values(measured([base], PerplexityOptions(windows=(w,)), methods=("yarn",), scale=w / CONTEXT))[0][0] for w in windows]
    assert values(measured([base], PerplexityOptions(windows=windows), methods=("dynamic-yarn",))) == [pytest.approx(static, rel=1e-6)]


def test_longer_windows_add_no_pass_to_static_methods(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, losses = [], Torch.losses

    def counted(self: Torch, rope: Any, ids: Any, first: int, progress: Any = lambda f: None) -> Any:
        lengths.append(len(ids))
        return losses(self, rope, ids, first, progress)

    monkeypatch.setattr(Torch, "losses", counted)
    measured([make_model()], PerplexityOptions(windows=(32, 64, 128)), methods=("yarn",), scale=2.0)
    assert lengths == [128]


def test_logits_of_all_positions_are_never_in_memory(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    base, wish = make_model(), PerplexityOptions(windows=(256,))
    whole = values(measured([base], wish))
    rows, linear = [], torch.nn.functional.linear

    def watched(x: Any, w: Any, b: Any = None) -> Any:
        rows.extend([x.shape[-2]] if w.shape[0] == 263 else [])
        return linear(x, w, b)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    monkeypatch.setattr("yarn_convert.compute.scorer.LOGITS", 263 * 10)
    assert values(measured([base], wish)) == [pytest.approx(whole[0], rel=1e-6)]
    assert rows and max(rows) <= 10 and sum(rows) == 255


def test_a_model_whose_layers_are_loaded_as_they_are_needed_is_measured_the_same(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, wish = make_model(), PerplexityOptions(windows=(32, 128))
    whole = values(measured([base], wish))
    monkeypatch.setattr("yarn_convert.compute.reference.free_memory", lambda device: 0)
    result = measured([base], wish)
    assert result["models"][0]["offloaded"] and values(result) == whole


def llama_cpp_perplexity(logits: np.ndarray, ids: np.ndarray, width: int) -> tuple[float, int]:
    """(Σ −ln p, tokens) of one chunk as tools/perplexity/perplexity.cpp counts them: first = n_ctx/2, n_ctx − first − 1 of them,
    each by `log_softmax`: the largest logit, the sum of expf in double."""
    first, total = width // 2, 0.0
    for j in range(width - first - 1):
        row = logits[first + j]
        largest = row.max()
        total += math.log(float(np.exp(row - largest, dtype=np.float32).astype(np.float64).sum())) - float(
            row[ids[first + j + 1]] - largest
        )
    return total, width - first - 1


@pytest.mark.skipif(python_of("llama.cpp") is None, reason="llama-cpp-python is not installed")
def test_llama_cpps_own_count_over_its_own_logits_gives_our_losses(make_model: MakeModel, tmp_path: Path) -> None:
    """Its `perplexity` counts the second half of each chunk; so do we where the span says so, in torch and by --runtime llama.cpp."""
    base, width, chunks = make_model(), 2 * CONTEXT, 2
    out, ids = extended(base, tmp_path / "yarn.gguf"), text_ids(base, 2 * 2 * CONTEXT)
    theirs = [
        llama_cpp_perplexity(runtimes.run("llama.cpp", out, part, [(0, width)]).logits, part, width)
        for part in np.split(ids, chunks)
    ]  # fmt: skip
    c = open_checkpoint(resolve(str(out)))
    scorers = (Torch(c, "cpu"), RuntimeScorer(c, "llama.cpp"))
    for scorer in scorers:
        ours = [float(scorer.losses(c.rope, part, width // 2 + 1).sum()) for part in np.split(ids, chunks)]
        assert ours == pytest.approx([total for total, _ in theirs], rel=2e-5)
    assert [n for _, n in theirs] == [width - width // 2 - 1] * chunks
    wish = PerplexityOptions(windows=(width,), tokens=len(ids) - 64, stride=64)
    by_runtime, by_torch = (values(measured([out], wish, runtime=r)) for r in ("llama.cpp", "transformers"))
    assert by_runtime == [pytest.approx(by_torch[0], rel=2e-5)]


@pytest.mark.skipif(python_of("llama.cpp") is None, reason="llama-cpp-python is not installed")
def test_one_process_with_one_model_serves_texts_of_all_lengths_as_one_for_each(make_model: MakeModel, tmp_path: Path) -> None:
    """Lengths that choose either of two lists, and again; nothing of an earlier text is left. A process that fails is named and gone."""
    out, ids = extended(make_model(), tmp_path / "two.gguf", short="base"), text_ids(make_model("again"), 300)
    kept, pids = Kept("llama.cpp", out), set()
    for part in (ids[:50], ids[50:100], ids):
        found = kept.run(part, [(0, len(part))])
        assert kept.child is not None
        pids.add(kept.child.pid)
        assert np.array_equal(found.logits, runtimes.run("llama.cpp", out, part, [(0, len(part))]).logits)
    assert len(pids) == 1
    kept.close()
    assert kept.child is None
    with pytest.raises(runtimes.Failed, match=r"llama\.cpp could not run"):
        Kept("llama.cpp", tmp_path / "nothing.gguf").run(ids[:4], [(0, 4)])


def with_bos(folder: Path, **more: Any) -> Path:
    """The model, whose tokenizer puts the token 1 before a text; `more` goes into its tokenizer.json."""
    path = folder / "tokenizer.json"
    spelt = json.loads(path.read_text())
    special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    single = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    path.write_text(json.dumps({**spelt, "post_processor": template, **more}))
    return folder


CUTS_AND_PADS = {  # as fine-tuning leaves them in tokenizer.json
    "truncation": {"direction": "Right", "max_length": 100, "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                "pad_token": "<|endoftext|>"},
}  # fmt: skip


def test_a_tokenizer_that_cuts_and_pads_changes_no_text_and_hides_no_bos(make_model: MakeModel) -> None:
    plain, other = with_bos(make_model("plain")), with_bos(make_model("other"), **CUTS_AND_PADS)
    for base in (plain, other):
        (model,) = measured([base], PerplexityOptions(windows=(CONTEXT,)))["models"]
        assert model["bos"] == [1] and model["documents"][0]["tokens"] > 1000
    found = [
        measure_passkey([str(b)], PasskeyOptions(lengths=(600,), trials=2), ResultJournal())["rows"][0]["trials"] for b in (plain, other)
    ]
    assert found[0] == found[1] and all(t["tokens"] > 500 for t in found[0])


def test_bos_stands_before_every_window_where_the_tokenizer_puts_it(make_model: MakeModel, tmp_path: Path) -> None:
    base = with_bos(make_model())
    result = measured([base], PerplexityOptions(windows=(CONTEXT,), tokens=100, stride=32))
    point = result["rows"][0]["points"][0]
    assert result["models"][0]["bos"] == [1]
    assert point["tokens"] == 100
    ids, scorer = text_ids(base, 100), Torch(open_checkpoint(resolve(str(base))), "cpu")
    spans = [(0, 63, 0), (32, 95, 63), (64, 100, 95)]
    losses = [scorer.losses(scorer_rope(base), np.append([1], ids[a:b]), 1 + f - a) for a, b, f in spans]
    assert point["loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-6)


def scorer_rope(folder: Path) -> Any:
    return open_checkpoint(resolve(str(folder))).rope


# -- dynamic methods, token by token ----------------------------------------------------------------------------------


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a - b).sum() / np.square(b - b.mean()).sum())


def token_by_token(folder: Path, rope: Rope, ids: np.ndarray, cache: str, prompt: int = 8) -> np.ndarray:
    """Logits after every token from the prompt's last on, float32[len(ids) − prompt + 1, vocabulary]."""
    steps = Steps(Torch(open_checkpoint(resolve(str(folder))), "cpu").reference, rope, cache)
    rows = [steps.feed(ids[:prompt])]
    return np.stack(rows + [steps.feed(ids[i : i + 1]) for i in range(prompt, len(ids))])


def fresh_passes(folder: Path, rope: Rope, ids: np.ndarray, prompt: int = 8) -> np.ndarray:
    """The same, each row by a pass of transformers' own Llama over all tokens, with the recipe's frequencies put into its module."""
    from transformers import AutoModelForCausalLM

    net, rows = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), []
    for n in range(prompt, len(ids) + 1):
        t = table(rope, n)
        net.model.rotary_emb.inv_freq = torch.from_numpy(t.inv_freq.astype(np.float32))
        net.model.rotary_emb.attention_scaling = t.multiplier
        with torch.no_grad():
            rows.append(net(torch.from_numpy(ids[:n])[None], use_cache=False).logits[0, -1].numpy())
    return np.stack(rows)


def each_position_at_its_own_length(weights: dict[str, np.ndarray], rope: Rope, ids: np.ndarray, prompt: int = 8) -> np.ndarray:
    """A Llama in NumPy whose position m attends to all before it under the table of m + 1 tokens (the prompt under its own), query and
    keys alike: what keys cached before RoPE mean. float64[tokens, vocabulary]."""
    w = {k.removeprefix("model."): v.astype(np.float64) for k, v in weights.items()}
    heads, kv, d = 4, 2, 16

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * w[name]

    def turned(x: np.ndarray, t: Any, first: int = 0) -> np.ndarray:
        angle = np.arange(first, first + len(x))[:, None, None] * t.inv_freq
        a, b = x[..., : d // 2], x[..., d // 2 :]
        c, s = np.cos(angle) * t.multiplier, np.sin(angle) * t.multiplier
        return np.concatenate([a * c - b * s, b * c + a * s], -1)

    x = w["embed_tokens.weight"][ids]
    for i in range(len([k for k in w if k.endswith("q_proj.weight")])):
        block = f"layers.{i}."
        h = norm(x, block + "input_layernorm.weight")
        q, k, v = ((h @ w[f"{block}self_attn.{n}_proj.weight"].T).reshape(len(ids), -1, d) for n in "qkv")
        out = np.zeros((len(ids), heads, d))
        for m in range(len(ids)):
            t = table(rope, max(prompt, m + 1))
            keys = np.repeat(turned(k[: m + 1], t), heads // kv, axis=1)
            scores = np.einsum("hd,khd->hk", turned(q[m : m + 1], t, m)[0], keys) / math.sqrt(d)
            p = np.exp(scores - scores.max(1, keepdims=True))
            out[m] = np.einsum("hk,khd->hd", p / p.sum(1, keepdims=True), np.repeat(v[: m + 1], heads // kv, axis=1))
        x = x + out.reshape(len(ids), -1) @ w[block + "self_attn.o_proj.weight"].T
        h = norm(x, block + "post_attention_layernorm.weight")
        gate = h @ w[block + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[block + "mlp.up_proj.weight"].T)) @ w[block + "mlp.down_proj.weight"].T
    return np.asarray(norm(x, "norm.weight") @ w["lm_head.weight"].T)


DYNAMIC = ("dynamic-yarn", "dynamic-linear", "dynamic-ntk")


@pytest.mark.parametrize("method", DYNAMIC)
def test_keys_cached_before_rope_give_the_logits_of_a_fresh_pass_and_after_it_they_do_not(make_model: MakeModel, method: str) -> None:
    """One layer, where keys and values follow from the tokens alone: to float32 precision at every length, inside and beyond L."""
    base, rope = make_model(layers=1), Rope(method, 10000.0, 16, 32)
    ids = text_ids(base, 80)
    fresh, before, after = fresh_passes(base, rope, ids), *(token_by_token(base, rope, ids, cache) for cache in ("before", "after"))
    inside = 32 - 8 + 1  # rows of lengths up to L, where s is 1
    assert max(nmse(a, b) for a, b in zip(before, fresh, strict=True)) < 1e-9
    assert nmse(after[:inside], fresh[:inside]) < 1e-9
    assert nmse(after[inside:], fresh[inside:]) > 0.02


@pytest.mark.parametrize("method", DYNAMIC)
def test_in_deeper_models_the_cache_before_rope_is_what_each_step_computes_at_its_own_length(make_model: MakeModel, method: str) -> None:
    """Hidden states of earlier steps are not computed again, so a fresh pass is another thing; the cache after RoPE is far from both."""
    base, rope = make_model(layers=2), Rope(method, 10000.0, 16, 32)
    ids = text_ids(base, 80)
    expected = each_position_at_its_own_length(tiny_weights(layers=2), rope, ids)[7:]
    before, after, none = (token_by_token(base, rope, ids, cache) for cache in ("before", "after", "none"))
    fresh = fresh_passes(base, rope, ids)
    assert nmse(before, expected) < 1e-9
    assert nmse(none, fresh) < 1e-9
    assert nmse(after, expected) > 1e-3
    assert 1e-6 < nmse(before, fresh) < nmse(after, fresh)


@pytest.mark.parametrize("cache", ["before", "after", "none"])
def test_static_methods_do_not_depend_on_the_cache(make_model: MakeModel, cache: str) -> None:
    base, rope = make_model(), Rope("yarn", 10000.0, 16, 32, {"factor": 4.0})
    ids = text_ids(base, 48)
    assert nmse(token_by_token(base, rope, ids, cache), fresh_passes(base, rope, ids)) < 1e-9


# -- passkey ----------------------------------------------------------------------------------------------------------


def test_the_prompt_is_the_references_and_as_long_as_it_can_be(make_model: MakeModel) -> None:
    tokenizer = tokenizer_of(open_checkpoint(resolve(str(make_model()))))
    depths = []
    for trial in range(20):
        p = prompt(tokenizer, [1], 2000, trial, seed=0)
        text = tokenizer.decode(p.ids[1:].tolist())
        task, before, key, after, question = text.split("\n")
        assert task.startswith("There is an important info hidden") and question == "What is the pass key? The pass key is"
        assert key == f"The pass key is {p.key}. Remember it. {p.key} is the pass key." and 10000 <= p.key < 100000
        sentences = [part.count("Here we go") for part in (before, after)]
        assert before == " ".join([FILLING] * sentences[0]) and after == " ".join([FILLING] * sentences[1])
        assert abs(sentences[0] - p.depth * sum(sentences)) <= 0.5
        one = len(tokenizer.encode(" " + FILLING, add_special_tokens=False).ids)
        assert p.ids[0] == 1 and 2000 - one - 1 <= len(p.ids) <= 2000
        depths.append(p.depth)
    assert min(depths) < 0.2 and max(depths) > 0.8
    with pytest.raises(UsageError, match="needs more than 100 tokens"):
        prompt(tokenizer, [], 100, 0, 0)


def test_greedy_steps_are_those_of_transformers_generate(make_model: MakeModel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = make_model()
    net = AutoModelForCausalLM.from_pretrained(extended(base, tmp_path / "yarn"), dtype=torch.float32).eval()
    c, ids = open_checkpoint(resolve(str(base))), text_ids(base, 100)
    theirs = net.generate(torch.from_numpy(ids)[None], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 100:]
    rope = Rope("yarn", 10000.0, 16, CONTEXT, {"factor": 4.0})
    assert greedy(Steps(Torch(c, "cpu").reference, rope), ids, 12) == theirs.tolist()
    assert len(greedy(Steps(Torch(c, "cpu").reference, rope), ids, 12, lambda found: len(found) == 3)) == 3


@pytest.mark.parametrize(("said", "right"), [(" {key}.", 4), (" {key}7", 0), (" is 1{key}", 0), (" no", 0), ("\n{key} and 5", 4)])
def test_the_first_number_is_the_answer(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, said: str, right: int) -> None:
    base = make_model()
    tokenizer = tokenizer_of(open_checkpoint(resolve(str(base))))
    keys = {tuple(p.ids): p.key for p in (prompt(tokenizer, [], 600, i, 3) for i in range(4))}
    answer = lambda steps, ids, *_: tokenizer.encode(said.format(key=keys[tuple(ids)]), add_special_tokens=False).ids  # noqa: E731
    monkeypatch.setattr(retrieval, "greedy", answer)
    (row,) = measure_passkey([str(base)], PasskeyOptions(lengths=(600,), trials=4, depths=2, seed=3), ResultJournal())["rows"]
    (point,) = row["points"]
    assert (point["correct"], point["accuracy"]) == (right, right / 4)
    assert sum(n for n, _ in point["by_depth"]) == 4 and sum(k for _, k in point["by_depth"]) == right
    assert [t["depth"] < 0.5 for t in row["trials"]].count(True) == point["by_depth"][0][0]


ROTATIONS = {
    "qwen3": "halves", "gpt_neox": "halves", "phi3/partial": "halves", "cohere": "neighbours", "glm4": "neighbours",
    "gemma2": "", "gemma3_text": "", "gemma4_text": "", "smollm3": "", "granite": "halves", "falcon": "", "stablelm": "halves",
}  # fmt: skip


@pytest.mark.parametrize("name", ROTATIONS)
def test_every_architectures_head_and_rotation_are_its_own(tmp_path: Path, name: str) -> None:
    """Losses equal those of the reference's whole logits, scaled or capped as the architecture does; where the rotation is not understood,
    as with a cap on the scores or layers of two kinds, every step is a fresh pass, and either way its logits are those of one."""
    from family_models import make

    c, ids = open_checkpoint(resolve(str(make(name, tmp_path / "model")))), np.arange(3, 43)
    scorer, t = Torch(c, "cpu"), table(c.rope, len(ids))
    logits = scorer.reference.logits(t, ids, [(0, len(ids))]).astype(np.float64)
    expected = np.log(np.exp(logits[:-1]).sum(1)) - logits[np.arange(39), ids[1:]]
    assert scorer.losses(c.rope, ids, 1) == pytest.approx(expected, abs=2e-5)
    steps = Steps(scorer.reference, c.rope)
    assert (steps.rotation, steps.cache) == (ROTATIONS[name], "after" if ROTATIONS[name] else "none")
    found = [steps.feed(part) for part in (ids[:30], *np.split(ids[30:], 10))]
    assert nmse(np.stack(found[1:]), logits[30:]) < 1e-9


# -- temperature and advice -------------------------------------------------------------------------------------------


def test_the_recommended_temperature_is_yarns_own_and_segments_add_up(make_model: MakeModel) -> None:
    base, s = make_model(), settings(scale=4.0, texts=Texts(cut=4 * CONTEXT, most=2))
    wish = TemperatureOptions(multipliers=(0.9, 1.3), segments=3)
    (row,) = measure_temperature([str(base)], replace(wish, settings=s), ResultJournal())["rows"]
    assert row["recommended"] == 0.1 * math.log(4) + 1
    assert [p["multiplier"] for p in row["points"]] == [0.9, row["recommended"], 1.3]
    (yarn,) = measure_perplexity([str(base)], PerplexityOptions(replace(s, methods=("yarn",)), windows=(4 * CONTEXT,)), ResultJournal())[
        "rows"
    ]
    assert row["points"][1]["perplexity"] == pytest.approx(yarn["points"][0]["perplexity"], rel=1e-9)
    weights = [b - a for a, b in row["segments"]]
    assert sum(weights) == 4 * CONTEXT - 1
    for p in row["points"]:
        assert math.log(p["perplexity"]) == pytest.approx(np.average(np.log(p["by_segment"]), weights=weights))
    assert row["best_by_document"] == [min(row["points"], key=lambda p: p["by_document"][i])["multiplier"] for i in range(2)]
    assert len({p["perplexity"] for p in row["points"]}) == 3


def breaks_past_its_window(self: Torch, rope: Rope, ids: np.ndarray, first: int, progress: Any = None) -> np.ndarray:
    """Losses of a model as the field knows them: worse with every factor, useless past L·s; and the text itself grows harder."""
    s = float(rope.params.get("factor", 1.0))
    at = np.arange(first, len(ids))
    return 2.0 + 0.01 * (s - 1) + ids[first:] / 500.0 + 3.0 * (at >= s * rope.original_context)


@pytest.mark.parametrize(("n", "tolerance", "factor"), [(256, 0.05, 4.0), (256, 0.01, None), (250, 0.05, 250 / 64), (48, 0.02, 1.0)])
def test_advice_is_the_smallest_factor_that_stays_flat(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, n: int, tolerance: float, factor: float | None
) -> None:
    monkeypatch.setattr(Torch, "losses", breaks_past_its_window)
    result = measure_advice(
        str(make_model()), AdviseOptions(settings(texts=Texts(cut=300, most=3)), context=n, tolerance=tolerance), ResultJournal()
    )
    assert result["factor"] == factor
    last = result["tried"][-1]
    assert [c["tokens"] for c in last["short"]] == [16, 32, 64]
    assert [c["change"] for c in last["short"]] == pytest.approx([math.exp(0.01 * (last["factor"] - 1)) - 1] * 3)
    if factor:
        assert max(last["excess"]) == pytest.approx(math.exp(0.01 * (factor - 1)) - 1), "not the text's own difficulty"
        assert all(max(t["excess"]) > tolerance for t in result["tried"][:-1])


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_what_a_factor_costs_is_counted_from_what_the_base_computes_for_that_length(
    make_model: MakeModel, tmp_path: Path, kind: str
) -> None:
    """A base whose recipe follows the length has another one for a short text than for the N tokens of the advice."""
    from family_models import make

    dynamic = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": CONTEXT}}
    base = make_model(config=dynamic) if kind == "dynamic" else make("phi3/longrope", tmp_path / "base")
    result = measure_advice(str(base), AdviseOptions(context=8 * CONTEXT, factors=(16.0,), tolerance=0.0), ResultJournal())
    costs = result["tried"][0]["short"]
    alone = values(measured([base], PerplexityOptions(windows=tuple(c["tokens"] for c in costs))))[0]
    assert [c["perplexity"] for c in costs] == pytest.approx(alone, rel=1e-6)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": CONTEXT,
}


def test_advice_on_a_base_that_keeps_its_scaling_counts_from_what_it_serves(make_model: MakeModel) -> None:
    """Llama 3.1 serves 131,072 tokens by its own llama3, not 8,192: its window, its short texts and its factors are of that."""
    base = make_model(config={"rope_scaling": LLAMA3, "max_position_embeddings": 4 * CONTEXT})
    result = measure_advice(str(base), AdviseOptions(context=8 * CONTEXT, tolerance=0.0), ResultJournal())
    assert result["original_context"] == 4 * CONTEXT
    assert [c["tokens"] for c in result["tried"][0]["short"]] == [CONTEXT, 2 * CONTEXT, 4 * CONTEXT]
    assert [(t["factor"], t["context"]) for t in result["tried"][1:3]] == [(1.5, 6 * CONTEXT), (2.0, 8 * CONTEXT)]


@pytest.mark.parametrize("method", [(), ("none",)])
def test_the_original_context_changes_nothing_in_a_base_as_it_is(make_model: MakeModel, method: tuple[str, ...]) -> None:
    base = make_model(config={"rope_scaling": LLAMA3, "max_position_embeddings": 4 * CONTEXT})
    found = [
        values(measured([base], PerplexityOptions(windows=(2 * CONTEXT,)), methods=method, original_context=length))
        for length in (None, CONTEXT // 2)
    ]
    assert found[0] == found[1]


def test_a_perplexity_that_is_no_number_is_not_flat(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a type overflows at the end of a long text."""
    whole = Torch.losses

    def overflows(self: Torch, rope: Any, ids: np.ndarray, first: int, *rest: Any) -> np.ndarray:
        return np.where(np.arange(first, len(ids)) >= 3 * CONTEXT, np.nan, whole(self, rope, ids, first, *rest))

    monkeypatch.setattr(Torch, "losses", overflows)
    result = measure_advice(str(make_model()), AdviseOptions(context=4 * CONTEXT, tolerance=1e9, factors=(4.0,)), ResultJournal())
    assert result["factor"] is None and len(result["tried"]) == 2


def test_a_perplexity_that_is_no_number_is_not_the_best(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Torch.losses

    def overflows(self: Torch, rope: Any, ids: np.ndarray, first: int, *rest: Any) -> np.ndarray:
        return whole(self, rope, ids, first, *rest) * (np.nan if rope.params["attention_factor"] < 0.5 else 1)

    monkeypatch.setattr(Torch, "losses", overflows)
    (row,) = measure_temperature([str(make_model())], TemperatureOptions(settings(scale=4.0), multipliers=(0.1, 1.2)), ResultJournal())[
        "rows"
    ]
    assert row["best"] > 1 and row["best_by_document"][0] > 1


# -- going on after an interruption -----------------------------------------------------------------------------------


def test_the_same_command_goes_on_and_another_input_does_not(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, wish, path = make_model(), PerplexityOptions(windows=(CONTEXT,), tokens=200, stride=32), tmp_path / "journal"
    whole = values(measured([base], wish, methods=("none", "yarn"), scale=2.0))
    left, losses = 4, Torch.losses

    def failing(self: Torch, *args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return losses(self, *args)

    monkeypatch.setattr(Torch, "losses", failing)
    with pytest.raises(KeyboardInterrupt):
        measured([base], wish, ResultJournal(path), methods=("none", "yarn"), scale=2.0)
    path.write_text(path.read_text()[:-20])  # as a power failure cuts a line
    left = 1000
    assert values(measured([base], wish, ResultJournal(path), methods=("none", "yarn"), scale=2.0)) == whole
    assert 1000 - left == 12 - 3, "12 passes, of which the journal had three whole ones"
    left = 0
    assert values(measured([base], wish, ResultJournal(path), methods=("none", "yarn"), scale=2.0)) == whole
    for other in ({"methods": ("yarn",), "scale": 3.0}, {"methods": ("yarn",), "scale": 2.0, "dtype": "bf16"}):
        with pytest.raises(KeyboardInterrupt):
            measured([base], wish, ResultJournal(path), **other)


def test_another_config_is_another_model_to_the_journal(make_model: MakeModel, tmp_path: Path) -> None:
    """The weight files are the same; what is computed of them is not."""
    base, wish, path = make_model(), PerplexityOptions(windows=(CONTEXT,)), tmp_path / "journal"
    first = values(measured([base], wish, ResultJournal(path)))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    again = values(measured([base], wish, ResultJournal(path)))
    assert again == values(measured([base], wish)) != first


def test_every_part_of_a_split_file_tells_it_from_others(make_model: MakeModel, tmp_path: Path) -> None:
    out = extended(make_model(ff=4096), tmp_path / "out.gguf", split_max_size="2M")
    parts = sorted(tmp_path.glob("out-*.gguf"))
    assert len(parts) > 1 and not out.exists()
    before = identity(open_checkpoint(resolve(str(parts[0]))))
    os.utime(parts[-1], (0, 0))
    assert identity(open_checkpoint(resolve(str(parts[0])))) != before


@pytest.mark.parametrize("content", [b"To be, or not to be", b"GGUF\x03\0\0\0", b'["a list"]', b"\n\n{}"])
def test_a_file_that_is_no_journal_is_left_alone(make_model: MakeModel, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "perplexity", str(make_model()), "--windows", "32", "--journal", str(path)])
    assert stopped.value.code == 1 and path.read_bytes() == content


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "yarn"], "nothing says how far"),
        (["--method", "yarm", "--scale", "2"], "unknown method 'yarm'"),
        (["--method", "yarn:x"], "is no method and factor"),
        (["--method", "none,none"], "named twice"),
        (["--method", "yarn:0", "--scale", "2"], "--scale must be a number above 1"),
        (["--method", "dynamic-yarn:4"], "dynamic-yarn takes no factor"),
        (["--method", "none:4"], "none takes no factor"),
        (["--scale", "4"], "there is no --method"),
        (["--original-context", "0"], "--original-context must be a number of tokens"),
        (["--windows", "2048,x"], "'x' is no number of tokens"),
        (["--windows", "1m"], "no document has 1,048,576 tokens"),
        (["--windows", "32", "--tokens", "100", "--stride", "64"], "leaves out tokens"),
        (["--runtime", "llama.cpp"], "llama.cpp reads gguf"),
        (["--runtime", "llama.cpp", "--method", "yarn"], "takes no --method"),
        (["--text", "nowhere.txt"], "cannot read the text"),
        (["--dtype", "f8"], "unknown --dtype"),
        (["--dataset", "./nowhere"], "dataset|data set"),
        (["--dataset", "a", "--text", "TEXTS"], "--dataset and --text"),
        (["--cut", "16"], "the longest has 16: --cut makes them"),
        (["--plot", "nowhere/plot.svg"], "nowhere/plot.svg cannot be written"),
        (["--plot", "plot.jpeg"], "no format of a plot"),
        (["--tokens", "0"], "no window of 32 tokens slides over 0"),
        (["--windows", "64", "--tokens", "50"], "no window of 64 tokens slides over 50"),
        (["--tokens", "100", "--stride", "0"], "a stride of 0 leaves out tokens"),
        (["--stride", "8"], "there is no --tokens"),
        (["--cut", "0"], "--cut must be at least 2"),
        (["--method", ","], "names no method"),
        (["--text", "TEXTS", "--text", "."], "no *.txt or *.jsonl in ."),
        (["--plot", "new.svg", "--report", "new.svg"], "the same file twice"),
        (["--journal", "new.html", "--report", "new.html"], "the same file twice"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(TEXT) if a == "TEXTS" else a for a in arguments]
    with pytest.raises(SystemExit) as stopped:
        cli.main(
            ["evaluate", "perplexity", str(make_model()), *(["--windows", "32"] if "--windows" not in arguments else []), *arguments, "-q"]
        )
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")
    assert any(part in lines[0] for part in says.split("|")), lines


def test_a_mark_of_the_byte_order_is_no_token(make_model: MakeModel, tmp_path: Path) -> None:
    base, files = make_model(), (tmp_path / "a.txt", tmp_path / "b.txt")
    for file, mark in zip(files, (b"", b"\xef\xbb\xbf"), strict=True):
        file.write_bytes(mark + TEXT.read_bytes()[:3000])
    a, b = (values(measured([base], PerplexityOptions(windows=(CONTEXT,)), texts=Texts(files=(file,)))) for file in files)
    assert a == b


def test_plots_that_are_there_stop_a_run_before_it_begins(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passkey draws NAME-1, NAME-2, … for its methods."""
    pytest.importorskip("matplotlib")
    (tmp_path / "plot-2.png").write_bytes(b"mine")
    monkeypatch.setattr(retrieval, "greedy", lambda *_: pytest.fail("computed"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(
            ["evaluate", "passkey", str(make_model()), "--lengths", "500", "--method", "none,yarn:2", "--plot", str(tmp_path / "plot.png")]
        )
    assert stopped.value.code == 1 and "plot-2.png exists" in capsys.readouterr().err
    assert (tmp_path / "plot-2.png").read_bytes() == b"mine"


def test_without_a_measure_the_measures_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate"])
    out, err = capsys.readouterr()
    assert (stopped.value.code, err) == (0, "") and "perplexity" in out


ROWS = [{"text": TEXT.read_text()[:2000]}, {"text": None}, {"text": TEXT.read_text()[2000:4000], "other": 1}]


def test_a_data_set_gives_the_documents_of_its_rows(make_model: MakeModel, tmp_path: Path) -> None:
    """A local folder, as the package reads it; a row without text is too short."""
    pytest.importorskip("datasets")
    base, folder = make_model(), tmp_path / "rows"
    folder.mkdir()
    (folder / "test.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    files = [tmp_path / f"{i}.txt" for i in (0, 2)]
    for i, file in zip((0, 2), files, strict=True):
        file.write_text(ROWS[i]["text"])
    wish = PerplexityOptions(windows=(32, 500))
    by_row = measured([base], wish, texts=Texts(dataset=f"{folder}::test:text"))
    assert values(by_row) == values(measured([base], wish, texts=Texts(dataset=str(folder)))), "what is not said is found"
    assert values(by_row) == values(measured([base], wish, texts=Texts(files=tuple(files))))
    assert [d["name"] for d in by_row["models"][0]["documents"]] == [f"{folder}[0]", f"{folder}[2]"]
    assert by_row["models"][0]["left_out"] == 1


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ("", "names no data set"),
        (":::", "names no data set"),
        ("ROWS::test:text:more", "names no data set"),
        ("ROWS::train", "Bad split: train"),
        ("ROWS::test:other", "no text in other: it has text, other"),
        ("ROWS::test:none", "no text in none: it has text, other"),
        ("ROWSmissing", "cannot load the data set"),
    ],
)
def test_what_a_data_set_has_not_is_one_line_and_a_hint(
    make_model: MakeModel, tmp_path: Path, capfd: pytest.CaptureFixture[str], wish: str, says: str
) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "test.jsonl").write_text(json.dumps({"text": "a", "other": 1}))
    wish = wish.replace("ROWS", str(tmp_path / "rows"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "perplexity", str(make_model()), "--windows", "32", "--dataset", wish, "--json"])
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert stopped.value.code == 1 and set(json.loads(out)) == {"error", "hint"} and len(lines) == 2 and lines[1].startswith("hint: ")
    assert says in lines[0], lines


def test_a_data_set_of_a_hub_that_is_out_of_reach_is_one_line_at_once() -> None:
    """The package datasets alone would try six times, and say so each time."""
    pytest.importorskip("datasets")
    code = "from yarn_convert.compute.documents import contents; from yarn_convert.options import Texts; list(contents(Texts(dataset='some/texts')))"
    for why, hint in (({"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the network"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **why}, check=False, timeout=20
        )
        *trace, error = done.stderr.splitlines()
        assert "could not reach the Hub for the data set some/texts" in error and hint in error
        assert not [line for line in trace if "Retry" in line]


def test_a_length_that_is_named_twice_is_measured_once(make_model: MakeModel) -> None:
    result = measure_passkey([str(make_model())], PasskeyOptions(lengths=(600, 500, 600), trials=2), ResultJournal())
    assert result["lengths"] == (600, 500)
    assert [(p["length"], p["trials"]) for p in result["rows"][0]["points"]] == [(600, 2), (500, 2)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["temperature", "--scale", "2", "--window", "0"], "the window must be at least 16 tokens"),
        (["temperature", "--scale", "2", "--window", "-1"], "the window must be at least 16 tokens"),
        (["advise", "--context", "2"], "--context must be at least 16 tokens"),
        (["advise", "--context", "128", "--tolerance", "nan"], "tolerance"),
        (["advise", "--context", "128", "--factor", "0.5,2"], "factors must be above 1"),
        (["advise", "--context", "128", "--factor", "nan"], "factors must be above 1"),
        (["advise", "--context", "128", "--original-context", "4"], "too short to say what a factor costs"),
    ],
)
def test_numbers_out_of_range_are_one_line_and_a_hint(
    make_model: MakeModel, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", arguments[0], str(make_model()), *arguments[1:]])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and len(lines) == 2 and lines[1].startswith("hint: ")
    assert says in lines[0], lines


def test_perplexity_prints_a_table_or_json(make_model: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(make_model())
    arguments = ["evaluate", "perplexity", base, "--method", "none,yarn:2", "--windows", "32,64", "-q"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--json"])
    assert stopped.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in result["rows"]] == ["none", "yarn:2"]
    assert list(result) == ["measure", "windows", "tokens", "stride", "models", "rows", "created", "versions", "hardware"]
    with pytest.raises(SystemExit):
        cli.main(arguments)
    table = capsys.readouterr().out
    assert all(f"{p['perplexity']:.4g}" in table for row in result["rows"] for p in row["points"])


MEASURES = {
    "perplexity": ["--method", "none,yarn:2,dynamic-yarn", "--windows", "32,64,128", "--cut", "200", "--documents", "2"],
    "passkey": ["--method", "none,yarn:2", "--lengths", "500,700", "--trials", "3", "--depths", "2"],
    "needle": ["--method", "none,yarn:2", "--lengths", "500,700", "--trials", "2", "--depths", "2", "--needles", "2"],
    "longppl": ["--method", "none,yarn:2", "--window", "200", "--short-context", "32", "--step", "16", "--alpha", "0.5", "--beta=-9"],
    "divergence": ["--method", "none,yarn:2", "--base-method", "yarn:4", "--window", "200", "--cut", "200", "--documents", "2"],
    "temperature": ["--scale", "2", "--multipliers", "1,1.2", "--segments", "2"],
    "advise": ["--context", "128", "--factor", "2,4", "--segments", "2"],
}


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_writes_a_page_and_leaves_no_journal(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], measure: str
) -> None:
    pytest.importorskip("matplotlib")
    page, words = tmp_path / "out.html", ["evaluate", measure, str(make_model()), *MEASURES[measure], "-q"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--report", str(page), "--plot", str(tmp_path / "plot.png")])
    assert stopped.value.code == 0
    drawn = sorted(f.name for f in tmp_path.glob("*.png"))
    assert drawn == (["plot-1.png", "plot-2.png"] if measure in ("passkey", "needle") else ["plot.png"])
    assert all((tmp_path / f).read_bytes()[:4] == b"\x89PNG" for f in drawn)
    printed = capsys.readouterr().out
    seen = Page(page.read_text())
    assert not seen.unbalanced and not seen.open
    assert "<svg" in page.read_text() and seen.text.count("L = 64") == (measure in ("perplexity", "divergence", "advise"))
    with pytest.raises(SystemExit):
        cli.main([*words, "--json"])
    result = json.loads(capsys.readouterr().out)
    numbers = {
        "perplexity": lambda: [f"{p['perplexity']:.4g}" for row in result["rows"] for p in row["points"]],
        "passkey": lambda: [f"{n:,}" for n in result["lengths"]],
        "needle": lambda: [f"{p['accuracy']:.0%} ({p['low']:.0%}–{p['high']:.0%})" for row in result["rows"] for p in row["by_length"]],
        "longppl": lambda: [f"{row['longppl']:.4g}" for row in result["rows"]],
        "divergence": lambda: [f"{p['divergence']['value']:.4g}" for row in result["rows"] for p in (row["whole"], *row["points"])],
        "temperature": lambda: [f"{p['perplexity']:.4g}" for p in result["rows"][0]["points"]],
        "advise": lambda: [f"{x:+.1%}" for t in result["tried"] for x in t["excess"] if abs(x) < 100],
    }[measure]()
    assert numbers and all(n in seen.text and n in printed for n in numbers)
    assert [f.name for f in tmp_path.iterdir() if "partial" in f.name] == []


def test_ctrl_c_keeps_the_journal_and_the_same_command_goes_on(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    page, journal, computed, losses = tmp_path / "out.html", tmp_path / ".out.html.partial", [0], Torch.losses

    def interrupted(self: Torch, *args: Any) -> Any:
        computed[0] += 1
        if computed[0] == 3:
            raise KeyboardInterrupt
        return losses(self, *args)

    monkeypatch.setattr(Torch, "losses", interrupted)
    words = ["evaluate", "perplexity", str(make_model()), "--method", "none,yarn:2,linear:2", "--windows", "64", "--tokens", "100", "-q"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--stride", "36", "--report", str(page)])
    assert (stopped.value.code, page.exists(), len([x for x in journal.read_text().splitlines() if x])) == (130, False, 2)
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--stride", "36", "--report", str(page)])
    assert (stopped.value.code, page.exists(), journal.exists()) == (0, True, False)
    assert computed[0] == 3 + 6 - 2
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--report", str(page)])
    assert stopped.value.code == 1, "a report is replaced with --force only"


def test_what_an_output_costs_is_on_record_and_in_its_card(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_model()
    out = extended(base, tmp_path / "out")
    words = ["evaluate", "perplexity", str(base), str(out), "--windows", "32,128", "--record", "-q", "--json"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 0
    result = json.loads(capsys.readouterr().out)
    was, found = ([p["perplexity"] for p in row["points"]] for row in result["rows"])
    assert [p["change"] for p in result["rows"][1]["points"]] == pytest.approx([b / a - 1 for a, b in zip(was, found, strict=True)])
    kept = json.loads((out / "yarn_convert.json").read_text())
    assert [p["perplexity"] for p in kept["evaluation"]["points"]] == found and kept["recipe"]["method"] == "yarn"
    text = card(str(out))
    for window, a, b in zip(("32", "128"), was, found, strict=True):
        assert f"| {window} | {a:.4g} | {b:.4g} ± " in text and f"| {b / a - 1:+.1%} |" in text
    assert base.name in text and str(base) not in text and "not measured" not in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "a base and its outputs"),
        (["OUT", "--method", "yarn:2"], "a base and its outputs"),
        (["BASE"], "no manifest"),
        (["DEEPER"], "num_hidden_layers is 3"),
        (["STRANGER"], "tensors are not the base's"),
        (["BOS"], "other tokens than tiny"),
    ],
)
def test_only_outputs_as_they_are_go_on_record(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    base = make_model()
    places = {"BASE": str(base), "OUT": str(extended(base, tmp_path / "out")) if "OUT" in words else ""}
    if "DEEPER" in words:
        places["DEEPER"] = str(extended(make_model("deeper", layers=3), tmp_path / "out"))
    if "STRANGER" in words:
        places["STRANGER"] = str(extended(make_model("stranger", seed=5), tmp_path / "out"))
    if "BOS" in words:
        places["BOS"] = str(with_bos(extended(base, tmp_path / "out")))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "perplexity", str(base), *(places.get(w, w) for w in words), "--windows", "32", "--record"])
    assert stopped.value.code == 1 and says in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or "evaluation" not in json.loads((tmp_path / "out" / "yarn_convert.json").read_text())


def test_models_that_read_other_tokens_are_not_compared(make_model: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Perplexity is per token: over other tokens, or with BOS and without, a change says nothing of the models."""
    plain, same, other = make_model("plain"), make_model("same"), with_bos(make_model("other"))
    found = typed(measured([plain, same, other], PerplexityOptions(windows=(32, CONTEXT))))
    result = found.to_dict()
    assert [m["same_tokens"] for m in result["models"]] == [True, True, False]
    assert values(result, "change") == [[0.0, 0.0], [0.0, 0.0], [None, None]]
    assert sum("do not compare" in line for line in evaluation_lines(found)) == 1


def test_a_model_without_a_tokenizer_stops_a_run_before_it_begins(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = make_model("base"), make_model("other")
    (other / "tokenizer.json").unlink()
    monkeypatch.setattr(Torch, "losses", lambda *_: pytest.fail("computed"))
    with pytest.raises(InputError, match="no tokenizer"):
        measured([base, other], PerplexityOptions(windows=(32,)))


def test_outputs_as_they_are_go_by_one_name(make_model: MakeModel, tmp_path: Path) -> None:
    base, out = make_model(), tmp_path / "long.gguf"
    convert(str(base), Recipe(scale=4), out="gguf", output=out)
    found = measure_perplexity(
        [str(base), str(out)], PerplexityOptions(settings(texts=Texts(cut=64, most=1)), windows=(64,)), ResultJournal()
    )
    assert labels_of(typed(found)) == [str(base), str(out)]
    both = measure_perplexity(
        [str(base), str(out)], PerplexityOptions(settings(methods=("none",), texts=Texts(cut=64, most=1)), windows=(64,)), ResultJournal()
    )
    assert labels_of(typed(both)) == [f"{base} none", f"{out} none"]
