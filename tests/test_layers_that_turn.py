"""Which layers turn and which see a window: as transformers' own modules run them, and as llama.cpp's graphs were read."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel, split_options
from family_models import make

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.conversion import convert, extend, prepare
from yarn_convert.errors import FormatError, Unsupported, UsageError
from yarn_convert.families import ARCHS, FAMILIES, MODEL_TYPES
from yarn_convert.families.layers import Layer, farthest
from yarn_convert.formats.gguf_file import Value, encode_header, open_gguf
from yarn_convert.options import ConvertOptions, Recipe
from yarn_convert.rope import effect

WINDOW, TOKENS = 4, 12
SMALL = {
    "hidden_size": 32, "intermediate_size": 32, "intermediate_size_mlp": 32, "moe_intermediate_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 8, "vocab_size": 64, "max_position_embeddings": 64, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
WINDOWED = {"sliding_window": WINDOW}
MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 16, "layer_types": ["linear_attention", FULL] * 4}
CONFIGS: dict[str, list[dict[str, Any]]] = {  # what each says of its layers, besides SMALL
    "afmoe": [WINDOWED, WINDOWED | {"global_attn_every_n_layers": 3}, WINDOWED | {"layer_types": [FULL, *[SLIDING] * 7]}],
    "cohere2": [WINDOWED, WINDOWED | {"sliding_window_pattern": 3}, WINDOWED | {"layer_types": [FULL, *[SLIDING] * 7]}],
    "exaone4": [
        WINDOWED, WINDOWED | {"sliding_window_pattern": 2}, WINDOWED | {"layer_types": [FULL, *[SLIDING] * 7]},
        {"sliding_window": None, "layer_types": [FULL] * 8}, WINDOWED | {"num_hidden_layers": 2},
    ],
    "exaone_moe": [WINDOWED, WINDOWED | {"layer_types": [SLIDING] * 4 + [FULL] * 4}],
    "flint": [WINDOWED, WINDOWED | {"layer_types": [FULL] * 4 + [SLIDING] * 4}],
    "granitemoehybrid": [MAMBA | {"position_embedding_type": kind} for kind in ("rope", "nope", None)],
    "kolibri1": [WINDOWED],
    "llama4_text": [
        {"attention_chunk_size": WINDOW}, {"attention_chunk_size": WINDOW, "no_rope_layer_interval": 2},
        {"attention_chunk_size": WINDOW, "no_rope_layers": [1, 0] * 4}, {"attention_chunk_size": WINDOW, "no_rope_layers": [1] * 8},
        {"attention_chunk_size": WINDOW, "no_rope_layers": [1, 0] * 4, "layer_types": [FULL] * 8},
    ],
    "smollm3": [
        {}, {"no_rope_layer_interval": 3}, {"no_rope_layers": [0, 1] * 4}, WINDOWED | {"use_sliding_window": True}, WINDOWED,
        WINDOWED | {"use_sliding_window": True, "no_rope_layers": [1, 0] * 4, "layer_types": [SLIDING, FULL] * 4},
    ],
}  # fmt: skip
GROUPS = [(model_type, said) for model_type, configs in CONFIGS.items() for said in configs]


@pytest.mark.parametrize(("model_type", "said"), GROUPS)
def test_the_layers_of_a_config_are_those_of_transformers_itself(model_type: str, said: dict[str, Any]) -> None:
    """Run: which layers call the rotation, and how many tokens the last one sees by the mask that it is handed."""
    config = {"model_type": model_type} | SMALL | said
    mine = MODEL_TYPES[model_type].turning(config, config["num_hidden_layers"])
    turned, seen = run(model_type, SMALL | said)
    assert [layer.turns for layer in mine] == turned
    chunk = TOKENS % WINDOW or WINDOW if model_type == "llama4_text" else WINDOW
    visible = [TOKENS if layer.window is None else chunk for layer in mine]
    assert [v for v, t in zip(visible, turned, strict=True) if t] == [s for s, t in zip(seen, turned, strict=True) if t]


def run(model_type: str, config: dict[str, Any]) -> tuple[list[bool], list[int]]:
    """(whether each layer rotates, how many tokens the last token sees in it) in transformers' own module."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers", minversion="5.23")
    hf = transformers.AutoConfig.for_model(model_type, **config)
    net = transformers.AutoModelForCausalLM.from_config(hf, attn_implementation="eager").eval()
    module = importlib.import_module(type(net).__module__)
    name = "apply_rotary_emb" if model_type == "llama4_text" else "apply_rotary_pos_emb"
    rotate, turned, seen = getattr(module, name), [], []

    def counted(*args: Any, **more: Any) -> Any:
        turned[-1] = True
        return rotate(*args, **more)

    def attends(_: Any, __: Any, kwargs: Any) -> None:
        turned.append(False)
        mask = kwargs["attention_mask"]
        seen.append(0 if mask is None else int((mask[0, 0, -1] == 0).sum()))

    for layer in net.model.layers:
        (layer.self_attn or layer.mamba).register_forward_pre_hook(attends, with_kwargs=True)
    setattr(module, name, counted)
    try:
        with torch.no_grad():
            net(torch.arange(3, 3 + TOKENS)[None])
    finally:
        setattr(module, name, rotate)
    return turned, seen


def test_every_row_is_run() -> None:
    assert CONFIGS.keys() == {name for name, row in MODEL_TYPES.items() if row.turning}


PATTERN = "attention.sliding_window_pattern"
KEYS: list[tuple[str, dict[str, Any], int | None]] = [  # architecture, keys, how far its layers turn
    ("cohere2", {"block_count": 32, "attention.sliding_window": 4096}, 4096),
    ("cohere2", {"block_count": 4, "attention.sliding_window": 4096, PATTERN: [False] * 4}, 0),
    ("exaone-moe", {"block_count": 48, "attention.sliding_window": 128}, 128),
    ("exaone-moe", {"block_count": 49, "nextn_predict_layers": 1, "attention.sliding_window": 128}, 128),
    ("exaone-moe", {"block_count": 2, "attention.sliding_window": 128, PATTERN: 4}, 128),
    ("exaone4", {"block_count": 64, "attention.sliding_window": 4096, PATTERN: [True, True, True, False] * 16}, 4096),
    ("exaone4", {"block_count": 64}, 4096),  # written there
    ("exaone4", {"block_count": 30}, None),  # 1.2B: no windows, every layer turns
    ("llama4", {"block_count": 48}, 8192),
    ("llama4", {"block_count": 48, "attention.sliding_window": 512}, 8192),
    ("llama4", {"block_count": 48, "attention.sliding_window": 0}, None),
    ("llama4", {"block_count": 48, PATTERN: [False] * 48}, None),
    ("granite_swa", {"block_count": 4, "attention.sliding_window": 128, PATTERN: [False, True, True, True]}, None),
    ("granite_swa", {"block_count": 4, "attention.sliding_window": 128, PATTERN: [False, True] * 2, "attention.rope_pattern": [0, 1] * 2}, 128),
    ("granite_swa", {"block_count": 4, "attention.sliding_window": 128, PATTERN: [False, True] * 2, "attention.rope_pattern": [1, 1] * 2}, None),
    ("granitehybrid", {"block_count": 2, "attention.head_count_kv": [0, 2]}, None),
    ("granitehybrid", {"block_count": 2, "attention.head_count_kv": [0, 2], "rope.scaling.finetuned": False}, 0),
    ("granitehybrid", {"block_count": 2, "attention.head_count_kv": [0, 0]}, 0),
    ("smollm3", {"block_count": 36}, None),
    ("gemma3", {"block_count": 26, "attention.sliding_window": 512}, None),
    ("gpt-oss", {"block_count": 24, "attention.sliding_window": 128}, None),
]  # fmt: skip


@pytest.mark.parametrize(("arch", "keys", "far"), KEYS)
def test_how_far_the_layers_of_a_gguf_turn(arch: str, keys: dict[str, Any], far: int | None) -> None:
    assert ARCHS[arch].farthest({f"{arch}.{k}": v for k, v in keys.items()}) == far


def test_reach_is_the_widest_window_of_a_layer_that_turns() -> None:
    assert farthest([Layer(True, 16), Layer(True, 64), Layer(False), Layer(False, 512)]) == 64
    assert farthest([Layer(True, 16), Layer(True)]) is None
    assert farthest([Layer(False), Layer(False, 16)]) == 0


@pytest.mark.parametrize(
    "said", [{"sliding_window": "4096"}, {"sliding_window": [1]}, {"num_hidden_layers": None}, {"num_hidden_layers": -1}]
)
def test_what_is_no_number_is_said(said: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="not a number"):
        MODEL_TYPES["exaone4"].farthest(SMALL | said)


@pytest.mark.parametrize("layers", [10**9, 2**31])
def test_a_number_of_layers_that_nothing_has_takes_no_time(layers: int) -> None:
    assert MODEL_TYPES["exaone4"].farthest({"num_hidden_layers": layers}) == 4096
    assert ARCHS["llama4"].farthest({"llama4.block_count": layers}) == 8192


# -- what is done with it ---------------------------------------------------------------------------------------------


def as_architecture(arch: str, out: Path, **keys: Any) -> Path:
    """`out`, a GGUF of llama, as one of another architecture: the same tensors, the same keys and these."""
    old = open_gguf(out)
    fields: dict[str, Any] = {k.replace("llama.", f"{arch}.", 1) if k.startswith("llama.") else k: v for k, v in old.fields.items()}
    for key, value in keys.items():
        fields[f"{arch}.{key}"] = Value("bool[]", value) if isinstance(value, list) else Value("u32", value)
    fields["general.architecture"] = Value("str", arch)
    header, offsets = encode_header(fields, list(old.tensors.values()), old.alignment)
    made = out.with_stem(arch)
    with open(made, "wb") as f:
        f.write(header)
        for t in old.tensors.values():
            f.seek(offsets[t.name])
            f.write(t.read().tobytes())
        f.write(bytes(-f.tell() % old.alignment))
    return made


@pytest.fixture
def plain(make_model: MakeModel, tmp_path: Path) -> Path:
    """A GGUF of the architecture llama, of four layers."""
    out = tmp_path / "plain.gguf"
    convert(str(make_model(layers=4)), Recipe(method="none"), out="gguf", output=out)
    return out


@pytest.mark.parametrize(
    ("model_type", "said", "refused"),
    [
        ("kolibri1", {"sliding_window": 32}, True),
        ("kolibri1", {"sliding_window": 32, "layer_types": [SLIDING, FULL]}, True),
        ("kolibri1", {}, False),  # the config class's 513 tokens are more than the 256 that are asked for
        ("kolibri1", {"sliding_window": None, "layer_types": [FULL, FULL]}, False),
        ("exaone4", {"sliding_window": 32, "layer_types": [SLIDING, FULL]}, True),
        ("exaone4", {"sliding_window": None, "layer_types": [FULL, FULL]}, False),
        ("exaone_moe", {"sliding_window": 16}, True),
        ("llama4_text", {"attention_chunk_size": 16}, True),
        ("llama4_text", {"attention_chunk_size": 16, "layer_types": [FULL] * 4, "no_rope_layers": [1, 0] * 2}, False),
        ("smollm3", {"sliding_window": 16, "use_sliding_window": True, "no_rope_layers": [0, 1]}, False),
        ("smollm3", {"sliding_window": 16, "use_sliding_window": True, "no_rope_layers": [0, 1], "layer_types": [FULL, SLIDING]}, True),
        ("gemma2", {"sliding_window": 16}, False),
        ("mistral", {"sliding_window": 16}, False),
    ],
)
def test_a_folder_whose_layers_turn_in_windows_alone_is_not_extended(
    model_type: str, said: dict[str, Any], refused: bool, make_model: MakeModel, tmp_path: Path
) -> None:
    row = next((f for f in FAMILIES if f.model_type == model_type), None)
    described = {"model_type": model_type, "architectures": list(row.hf.architectures[:1]) if row else ["OfItsOwnForCausalLM"], **said}
    folder = make_model(config=described)
    if model_type in ("gemma2", "exaone4", "exaone_moe", "llama4_text"):  # whose tensors are others
        folder = make(model_type, tmp_path / model_type, config=said)
    judge(folder, refused, str(said.get("sliding_window") or said.get("attention_chunk_size")))


def judge(model: Path, refused: bool, window: str) -> None:
    if not refused:
        assert extend(open_checkpoint(resolve(str(model))), Recipe(scale=4)).context == 4 * CONTEXT
        return
    with pytest.raises(Unsupported, match=f"window of {window} tokens.*nothing to extend") as e:
        extend(open_checkpoint(resolve(str(model))), Recipe(scale=4))
    assert "is to be raised, by hand" in e.value.hint
    assert extend(open_checkpoint(resolve(str(model))), Recipe(method="none")).context == CONTEXT


SWA = "attention.sliding_window"


@pytest.mark.parametrize(
    ("arch", "keys", "refused"),
    [
        ("exaone-moe", {SWA: 32}, True),
        ("exaone-moe", {SWA: 32, PATTERN: [False] * 3 + [True]}, True),
        ("exaone-moe", {SWA: 512}, False),
        ("exaone4", {SWA: 32}, False),  # not 64 layers
        ("llama4", {SWA: 0}, False),
        ("granite_swa", {SWA: 32, PATTERN: [True] * 3 + [False]}, False),
        ("granite_swa", {SWA: 32, PATTERN: [True] * 3 + [False], "attention.rope_pattern": [True] * 3 + [False]}, True),
        ("openelm", {SWA: 32}, False),
    ],
)
def test_a_gguf_whose_layers_turn_in_windows_alone_is_not_extended(
    arch: str, keys: dict[str, Any], refused: bool, plain: Path, tmp_path: Path
) -> None:
    judge(as_architecture(arch, own_gguf(arch, tmp_path) or plain, **keys), refused, "32")


def own_gguf(arch: str, folder: Path) -> Path | None:
    """A GGUF of a tiny model of an architecture whose tensors are not Llama's."""
    name = {"exaone4": "exaone4", "exaone-moe": "exaone_moe", "llama4": "llama4_text"}.get(arch)
    if name is None:
        return None
    convert(str(make(name, folder / "base")), Recipe(method="none"), out="gguf", output=folder / "own.gguf")
    return folder / "own.gguf"


def test_llama4s_chunks_bound_it(tmp_path: Path) -> None:
    c = open_checkpoint(resolve(str(own_gguf("llama4", tmp_path))))
    with pytest.raises(Unsupported, match="window of 8,192 tokens"):
        extend(c, Recipe(context=16384))
    assert extend(c, Recipe(context=8192)).context == 8192


def test_up_to_the_window_there_is_something_to_extend(make_model: MakeModel) -> None:
    c = open_checkpoint(
        resolve(str(make_model(config={"model_type": "kolibri1", "architectures": ["XForCausalLM"], "sliding_window": 128})))
    )
    with pytest.raises(Unsupported) as e:
        extend(c, Recipe(scale=4))
    assert "--context 128 is the most" in e.value.hint
    assert extend(c, Recipe(context=128)).scale == 2


# -- windows that can be turned off -----------------------------------------------------------------------------------

EVERY = [
    ("mistral", {"sliding_window": 16}),
    ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}),
    ("qwen3", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 28, "layer_types": [SLIDING, SLIDING]}),
]


@pytest.mark.parametrize(("model_type", "said"), EVERY)
def test_a_window_of_every_layer_is_said_and_can_be_turned_off(
    model_type: str, said: dict[str, Any], make_model: MakeModel, tmp_path: Path
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = make_model() if model_type == "mistral" else make(model_type, tmp_path / "m")
    own = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]} if model_type == "mistral" else {}
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | own | said))
    assert any(
        "keeps its sliding window of 16 tokens" in n
        for n in prepare(str(folder), ConvertOptions(Recipe(scale=4), output=tmp_path / "kept")).plan.notes
    )
    found = prepare(str(folder), ConvertOptions(Recipe(scale=4), sliding_window="off", output=tmp_path / "out"))
    assert any("16 tokens is turned off" in n for n in found.plan.notes)
    found.run()
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    changed = torch.arange(3, 43)[None].repeat(2, 1)
    changed[1, 0] += 50
    with torch.no_grad():
        logits = net(changed).logits[:, -1]
    assert not torch.equal(logits[0], logits[1])  # the first of 40 tokens is seen by the last, through two layers of 16 it is not


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gpt_oss", "cohere2"])
def test_windows_of_some_layers_are_a_part_of_the_model(name: str, tmp_path: Path) -> None:
    folder = make(name, tmp_path / "m")
    method: dict[str, Any] = {"method": "none"} if name == "cohere2" else {"scale": 4}
    with pytest.raises(UsageError, match="only some layers"):
        prepare(str(folder), ConvertOptions(**split_options(**method, sliding_window="off", output=tmp_path / "out")))


def test_attention_by_rows_keeps_to_the_chunks(tmp_path: Path) -> None:
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    from yarn_convert.compute.reference import Reference

    c = open_checkpoint(resolve(str(make("llama4_text/chunks", tmp_path / "m"))))
    reference, ids = Reference(c), np.random.default_rng(0).integers(3, 263, 56)
    whole = reference.logits(effect(c.rope), ids, [(0, 56)])
    rows = reference.logits(effect(c.rope), ids, [(20, 56)], rows_only=True)
    np.testing.assert_allclose(rows, whole[20:], atol=1e-4)
