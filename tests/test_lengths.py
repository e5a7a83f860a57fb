"""The original length: what the file says, known models, and what is asked for because two readings are left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel
from test_validate import opened, rewritten

from yarn_convert.checkpoint import Checkpoint, open_checkpoint
from yarn_convert.checkpoint.source import Source, resolve
from yarn_convert.cli import entry as cli
from yarn_convert.conversion import convert, extend
from yarn_convert.conversion.describe import findings
from yarn_convert.errors import InputError, UsageError
from yarn_convert.options import Recipe
from yarn_convert.rope import table

QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 16}


def described(folder: Path, name: str = "model", repo: str | None = None, **config: Any) -> Checkpoint:
    """A config.json without weights."""
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 263}
    base = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 1e4}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**base, **shape, **config}))
    return open_checkpoint(Source(folder, name, repo, headers={}))


@pytest.mark.parametrize("key", ["max_sequence_length", "seq_length", "max_seq_len", "model_max_length"])
def test_a_second_length_says_which_is_which(tmp_path: Path, key: str) -> None:
    """Vicuna 16k has max_sequence_length 16,384 beside max_position_embeddings 4,096; yarn-convert writes L as model_max_length."""
    scaling = {"type": "linear", "factor": 4.0}
    short = described(tmp_path / "a", max_position_embeddings=4096, rope_scaling=scaling, **{key: 16384})
    long = described(tmp_path / "b", max_position_embeddings=16384, rope_scaling=scaling, **{key: 4096})
    for c in (short, long):
        assert (c.doubt, c.rope.original_context, c.context) == (None, 4096, 16384)
        with pytest.raises(UsageError, match="16,384 tokens is no extension of 16,384"):
            extend(c, Recipe(context=16384))
        e = extend(c, Recipe(scale=2, method="linear"))
        assert (e.rope.params["factor"], e.rope.original_context, e.context) == (8.0, 4096, 32768)
        assert extend(c, Recipe(scale=2)).rope.inner == c.rope
    other = described(tmp_path / "c", max_position_embeddings=4096, rope_scaling=scaling, **{key: 5000})
    assert other.doubt


@pytest.mark.parametrize("method", ["linear", "yarn"])
@pytest.mark.parametrize(("original", "context"), [(4096, 12288), (1365, 4095), (2048, 6144)])
def test_who_says_the_length_settles_it(tmp_path: Path, method: str, original: int, context: int) -> None:
    c = described(tmp_path / "a", max_position_embeddings=4096, rope_scaling={"rope_type": method, "factor": 3.0})
    with pytest.raises(InputError, match="does not say from which length") as e:
        extend(c, Recipe(scale=8))
    assert "--original-context 4096" in e.value.hint
    said = c.counting_from(original)
    assert (said.rope.original_context, said.context, said.doubt) == (original, context, None)
    e8 = extend(c, Recipe(scale=8, original_context=original))
    counted = context if method == "linear" else original
    assert (e8.rope.original_context, e8.context) == (counted, 8 * counted)


def test_dynamic_says_its_length(tmp_path: Path) -> None:
    """InternLM2: up to max_position_embeddings transformers' `_compute_dynamic_ntk_parameters` scales nothing, so that is L."""
    c = described(tmp_path / "a", max_position_embeddings=32768, rope_scaling={"type": "dynamic", "factor": 2.0})
    assert (c.doubt, c.rope.original_context, c.context, c.note) == (None, 32768, 32768, "")
    e = extend(c, Recipe(scale=4))
    assert (e.rope.method, e.rope.inner, e.rope.original_context, e.context) == ("yarn", None, 32768, 131072)


def test_linear_by_itself_needs_no_length(make_model: MakeModel, tmp_path: Path) -> None:
    """Its frequencies are the same whatever it counts from: only the format changes. YaRN's are not."""
    linear = make_model(name="linear", config={"rope_scaling": {"rope_type": "linear", "factor": 4.0}})
    convert(str(linear), Recipe(method="none"), out="gguf", output=tmp_path / "l.gguf")
    c = opened(rewritten(tmp_path / "l.gguf", {"yarn_convert.recipe": None}))
    assert (c.rope.params, c.context) == ({"factor": 4.0}, CONTEXT)
    with pytest.raises(InputError, match="does not say"):
        extend(c, Recipe(scale=2))
    yarn = make_model(name="yarn", config={"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})
    with pytest.raises(InputError, match="does not say"):
        convert(str(yarn), Recipe(method="none"), out="gguf", output=tmp_path / "y.gguf")
    convert(str(yarn), Recipe(method="none", original_context=CONTEXT // 2), out="gguf", output=tmp_path / "y.gguf")
    c = opened(tmp_path / "y.gguf")
    assert (c.rope.original_context, c.context) == (CONTEXT // 2, 2 * CONTEXT)


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_another_format_answers_no_question_and_ends_no_scaling(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    """What `--method none` makes of a base's own linear is as open as the base, or is composed as the base is."""
    fmt = "gguf" if name.endswith(".gguf") else "safetensors"
    asked = make_model(name="asked", config={"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    manifest = convert(str(asked), Recipe(method="none"), out=fmt, output=tmp_path / f"a{name}").to_dict()
    assert any("does not say from which length" in note for note in manifest["notes"])
    c = opened(tmp_path / f"a{name}")
    assert (c.rope.method, c.context, c.rope.params) == ("linear", CONTEXT, {"factor": 8.0})
    with pytest.raises(InputError, match="does not say"):
        extend(c, Recipe(scale=2))
    said = make_model(name="said", config={"rope_scaling": {"type": "linear", "factor": 4.0}, "max_sequence_length": 4 * CONTEXT})
    convert(str(said), Recipe(method="none"), out=fmt, output=tmp_path / f"s{name}")
    ways = [extend(opened(m), Recipe(scale=2)) for m in (said, tmp_path / f"s{name}")]
    assert [(e.rope.inner and e.rope.inner.method, e.rope.original_context, e.context) for e in ways] == [("linear", 256, 512)] * 2
    convert(str(make_model(name="plain")), Recipe(method="linear", scale=4), out=fmt, output=tmp_path / f"o{name}")
    convert(str(tmp_path / f"o{name}"), Recipe(method="none"), out=fmt, output=tmp_path / f"p{name}")
    e = extend(opened(tmp_path / f"p{name}"), Recipe(scale=8, method="linear"))
    assert (e.rope.params["factor"], e.context) == (8.0, 8 * CONTEXT), "an extension of ours is replaced, in whatever format"


STALE = {  # by which of two edits by hand: the recipe that stands there, its context, what is wrong with it
    "set": ({"type": "yarn", "factor": 4, "original_max_position_embeddings": CONTEXT}, CONTEXT, "not factor × original = 4 × 64 = 256"),
    "taken out": (None, 4 * CONTEXT, "no scaling leads there from the original 64"),
}


@pytest.mark.parametrize("name", ["out", "out.gguf"])
@pytest.mark.parametrize("edit", list(STALE))
def test_a_length_that_an_edit_by_hand_left_is_kept_and_said(make_model: MakeModel, tmp_path: Path, edit: str, name: str) -> None:
    """As model cards say it: only the factor is set. Readers then serve what the file names, and another format changes nothing."""
    scaling, context, why = STALE[edit]
    lengths = {"max_position_embeddings": context, "original_max_position_embeddings": CONTEXT}
    model = make_model(config={"rope_scaling": scaling, **lengths})
    fmt = "gguf" if name.endswith(".gguf") else "safetensors"
    manifest = convert(str(model), Recipe(method="none"), out=fmt, output=tmp_path / name).to_dict()
    assert any(why in note and "the output says the same" in note for note in manifest["notes"])
    assert opened(tmp_path / name).context == context
    for path in (model, tmp_path / name):
        assert any(why in line for line in findings(opened(path)))


@pytest.mark.parametrize("method", ["linear", "yarn"])
def test_a_gguf_that_does_not_say_it_is_asked_about(make_model: MakeModel, tmp_path: Path, method: str) -> None:
    convert(str(make_model()), Recipe(scale=4, method=method), out="gguf", output=tmp_path / "m.gguf")
    c = opened(rewritten(tmp_path / "m.gguf", {"yarn_convert.recipe": None}))
    assert (c.doubt, c.rope.original_context, c.context) == (None, CONTEXT, 4 * CONTEXT), "what yarn-convert writes says it"
    silent = {"yarn_convert.recipe": None, "llama.rope.scaling.original_context_length": None}
    c = opened(rewritten(tmp_path / "m.gguf", silent))
    with pytest.raises(InputError, match=r"llama.context_length is 256, and the file does not say"):
        extend(c, Recipe(scale=8))
    assert extend(c, Recipe(context=8 * CONTEXT, original_context=CONTEXT)).context == 8 * CONTEXT


# -- known models ------------------------------------------------------------------------------------------------------


def test_one_repository_has_one_length_however_it_is_named(tmp_path: Path) -> None:
    """The alias, the Hub id and a folder without a name: Qwen3 is known by its 40,960 alone."""
    found = [
        described(tmp_path / "a", "qwen3-8b", "Qwen/Qwen3-8B", max_position_embeddings=40960, **QWEN3),
        described(tmp_path / "a", "Qwen3-8B", "Qwen/Qwen3-8B", max_position_embeddings=40960, **QWEN3),
        described(tmp_path / "a", "my-model", max_position_embeddings=40960, **QWEN3),
    ]
    assert len({(c.rope.original_context, c.context, c.note) for c in found}) == 1
    c = found[0]
    assert (c.rope.original_context, c.context) == (32768, 40960)
    e = extend(c, Recipe(scale=4))
    assert (e.context, e.rope.params["factor"]) == (131072, 4.0)
    assert any("32,768" in note and "40,960" in note for note in e.notes), "and it is said"
    assert not any("trained" in note for note in extend(c, Recipe(scale=4, original_context=40960)).notes)
    longer = described(tmp_path / "b", max_position_embeddings=262144, **QWEN3)
    assert (longer.rope.original_context, longer.note) == (262144, "")


@pytest.mark.parametrize("by", ["repo", "_name_or_path", "folder", "README", "url"])
def test_a_model_is_known_by_any_of_its_names(tmp_path: Path, by: str) -> None:
    name = "Qwen2.5-7B" if by == "folder" else "model"
    config: dict[str, Any] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 131072}
    config |= {"sliding_window": 131072, "use_sliding_window": False}
    (tmp_path / "m").mkdir()
    if by == "README":
        (tmp_path / "m" / "README.md").write_text("---\nlicense: mit\nbase_model:\n- Qwen/Qwen2.5-7B\ntags: []\n---\n# A fine-tune\n")
    config |= {"_name_or_path": "Qwen/Qwen2.5-7B"} if by == "_name_or_path" else {}
    config |= {"_name_or_path": "https://huggingface.co/Qwen/Qwen2.5-7B"} if by == "url" else {}
    c = described(tmp_path / "m", name, "Qwen/Qwen2.5-7B" if by == "repo" else None, **config)
    assert c.rope.original_context == 32768
    assert "32,768 tokens that Qwen/Qwen2.5-7B was trained on" in c.note
    stranger = described(tmp_path / "x", "stranger", **{**config, "_name_or_path": "me/mine"})
    assert stranger.rope.original_context == 131072
    assert "Qwen/Qwen2.5" in stranger.note, "that another with the same length was trained on less is said"
    coder = described(tmp_path / "l", max_position_embeddings=16384)
    assert coder.note == "", "deepseek-coder's 16,384 are those of its scaling"
    retrained = described(tmp_path / "r", "Qwen2.5-7B", **{**config, "max_position_embeddings": 262144})
    assert (retrained.rope.original_context, retrained.note) == (262144, ""), "one of another length is another model"


def test_a_known_model_needs_not_be_asked_about(tmp_path: Path) -> None:
    linear = {"type": "linear", "factor": 4.0}
    coder = described(tmp_path / "a", repo="deepseek-ai/deepseek-coder-6.7b-base", max_position_embeddings=16384, rope_scaling=linear)
    assert (coder.rope.original_context, coder.context, coder.doubt) == (4096, 16384, None)
    tuned = {"max_position_embeddings": 4096, "_name_or_path": "meta-llama/Llama-2-7b-hf", "rope_scaling": {**linear, "factor": 8.0}}
    longlora = described(tmp_path / "b", **tuned)
    assert (longlora.rope.original_context, longlora.context, longlora.doubt) == (4096, 32768, None)
    for length, context in ((40960, 131072), (131072, 131072)):  # YaRN as ms-swift saves it, with the length raised or not
        scaled = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": length}
        qwen = described(tmp_path / f"{length}", **QWEN3, **scaled)
        if length == 40960:
            assert (qwen.rope.original_context, qwen.context) == (32768, context)
        else:
            assert qwen.doubt


def test_gemma_3_serves_its_131_072_by_its_own_linear_scaling(tmp_path: Path) -> None:
    """Of 4B and more: trained on 32,768, then scaled by 8. It is what it serves that an extension counts from."""
    gemma = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "head_dim": 16, "sliding_window": 1024}
    linear = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    c = described(tmp_path / "a", max_position_embeddings=131072, **gemma, **linear)
    assert (c.context, c.doubt) == (131072, None)
    assert extend(c, Recipe(scale=2)).rope.original_context == 131072
    assert described(tmp_path / "b", max_position_embeddings=131072, **gemma).rope.original_context == 131072
    assert described(tmp_path / "c", max_position_embeddings=32768, **gemma, **linear).doubt, "a plain one's length"


def test_a_file_that_contradicts_what_is_known_is_believed_and_it_is_said(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 131072}
    c = described(tmp_path / "a", repo="Qwen/Qwen2.5-7B", model_type="qwen2", architectures=["Qwen2ForCausalLM"],
                  max_position_embeddings=131072, rope_scaling=scaling)  # fmt: skip
    assert c.rope.original_context == 131072
    assert "trained on 32,768" in c.note


def test_inspect_shows_both_readings(make_model: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(config={"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})
    for more in ([], ["--runtimes"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["inspect", str(model), *more])
        shown = capsys.readouterr().out
        assert stop.value.code == 0
        assert "64 tokens extended to 256 or 16 tokens extended to 64" in shown
        assert "--original-context 64, or --original-context 16" in shown
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(model), "--original-context", "16", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["original_context"], facts["context"]) == (16, 64)


def test_validate_takes_the_length_or_asks_for_it(make_model: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    from yarn_convert.conversion.intention import intention_of

    c = open_checkpoint(resolve(str(make_model(config={"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}))))
    with pytest.raises(InputError, match="does not say"):
        intention_of(c, None, None, None)
    meant = intention_of(c, Recipe(original_context=CONTEXT), None, None)
    assert (meant.rope.original_context, meant.context) == (CONTEXT, 4 * CONTEXT)
    np.testing.assert_array_equal(table(meant.rope).inv_freq, table(c.rope).inv_freq)
