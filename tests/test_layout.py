"""How rows move between HF and GGUF: every transform against NumPy, both directions, whatever is read at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from yarn_convert.formats.layout import TRANSFORMS
from yarn_convert.formats.orders import Order
from yarn_convert.formats.tensors import Tensor, in_memory
from yarn_convert.targets import rows
from yarn_convert.targets.moving import Piece, converted
from yarn_convert.targets.rows import ordered

Array = NDArray[np.float32]
HEADS, KV, HEAD, HIDDEN, EXPERTS, FF, NOPE, VALUE, LATENT = 6, 2, 6, 10, 3, 5, 6, 9, 7  # a head of 4 would be its own inverse
SIZES = {
    "heads": HEADS, "kv_heads": KV, "head": HEAD, "hidden": HIDDEN, "experts": EXPERTS, "expert_ff": FF, "nope": NOPE, "value": VALUE,
    "kv_lora": LATENT, "shared_ff": FF,
}  # fmt: skip
GROUP = HEADS // KV
KEYS, PER_KEY, KEY_HEAD, VALUE_HEAD, KERNEL = 2, 3, 5, 4, 3  # linear attention
ALL_KEYS, ALL_VALUES = KEYS * KEY_HEAD, KEYS * PER_KEY * VALUE_HEAD
VOCAB = 11
SIZES |= {"ff": FF, "groups": 2, "group": 4, "inner": 8, "vocab": VOCAB, "vocab_ple": VOCAB - 3, "ple_all": HIDDEN}
LINEAR = {
    "k_heads": KEYS, "v_heads": KEYS * PER_KEY, "head_k": KEY_HEAD, "head_v": VALUE_HEAD, "linear_v": ALL_VALUES, "kernel": KERNEL,
    "linear_qkv": 2 * ALL_KEYS + ALL_VALUES,
}  # fmt: skip
SIZES |= LINEAR


def interleaved(w: Array) -> Array:
    """ggml's order of the rows of heads whose halves HF pairs."""
    return w.reshape(-1, 2, HEAD // 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def grouped(w: Array, part: slice) -> Array:
    """Rows `part` of each group of queries, a key and a value."""
    return w.reshape(KV, GROUP + 2, HEAD, -1)[:, part].reshape(-1, w.shape[-1])


def by_head(w: Array) -> list[Array]:
    return [np.concatenate([w.reshape(HEADS, 3, HEAD, -1)[:, k].reshape(-1, w.shape[-1]) for k in range(3)])]


def in_turn(w: Array, of: int) -> Array:
    """The value heads, of so many rows each, in the order in which ggml repeats the key heads."""
    return w.reshape(KEYS, PER_KEY, of, -1).swapaxes(0, 1).reshape(w.shape)


def after_keys(w: Array) -> Array:
    return np.concatenate([w[: 2 * ALL_KEYS], in_turn(w[2 * ALL_KEYS :], VALUE_HEAD)])


def by_key_head(w: Array) -> list[Array]:
    """Qwen3-Next's projections: query, key, values and gates of each key head."""
    values = PER_KEY * VALUE_HEAD
    q, k, v, z = np.split(w.reshape(KEYS, -1, HIDDEN), (KEY_HEAD, 2 * KEY_HEAD, 2 * KEY_HEAD + values), axis=1)
    return [np.concatenate([x.reshape(-1, HIDDEN) for x in (q, k, v)]), z.reshape(-1, HIDDEN)]


def decay(w: Array) -> Array:
    return -np.exp(w.astype(np.float64)).astype(np.float32)


# transform -> (shape of the HF tensor, the GGUF tensors that NumPy makes of it)
CASES: Mapping[str, tuple[tuple[int, ...], Callable[[Array], list[Array]]]] = {
    "": ((12, HIDDEN), lambda w: [w]),
    "interleave": ((HEADS * HEAD, HIDDEN), lambda w: [interleaved(w)]),
    "add_one": ((HIDDEN,), lambda w: [w + np.float32(1)]),
    "heads_of_three": ((HEADS * 3 * HEAD, HIDDEN), by_head),
    "groups_of_heads": (
        ((HEADS + 2 * KV) * HEAD, HIDDEN),
        lambda w: [np.concatenate([grouped(w, s) for s in (slice(GROUP), slice(GROUP, GROUP + 1), slice(GROUP + 1, None))])],
    ),
    "split_groups": (
        ((HEADS + 2 * KV) * HEAD, HIDDEN),
        lambda w: [
            interleaved(grouped(w, slice(GROUP))),
            interleaved(grouped(w, slice(GROUP, GROUP + 1))),
            grouped(w, slice(GROUP + 1, None)),
        ],
    ),
    "columns_in_turn": ((EXPERTS, HIDDEN, 2 * FF), lambda w: [w.swapaxes(1, 2)[:, k::2] for k in (0, 1)]),
    "in_turn": ((EXPERTS, 2 * FF), lambda w: [w[:, k::2] for k in (0, 1)]),
    "transposed": ((EXPERTS, FF, HIDDEN), lambda w: [w.swapaxes(1, 2)]),
    "transposed_or_saved": ((EXPERTS, FF, HIDDEN), lambda w: [w.swapaxes(1, 2)]),
    "column_halves_or_saved": ((EXPERTS, HIDDEN, 2 * FF), lambda w: [w.swapaxes(1, 2)[:, :FF], w.swapaxes(1, 2)[:, FF:]]),
    "halves": ((EXPERTS, 2 * FF, HIDDEN), lambda w: [w[:, :FF], w[:, FF:]]),
    "two_halves": ((2 * FF, HIDDEN), lambda w: [w[:FF], w[FF:]]),
    "column_halves": ((EXPERTS, HIDDEN, 2 * FF), lambda w: [w.swapaxes(1, 2)[:, k * FF : (k + 1) * FF] for k in (0, 1)]),
    "latent": (
        (HEADS * (NOPE + VALUE), LATENT),
        lambda w: [w.reshape(HEADS, -1, LATENT)[:, :NOPE].swapaxes(1, 2), w.reshape(HEADS, -1, LATENT)[:, NOPE:]],
    ),
    "value_heads": ((ALL_VALUES, HIDDEN), lambda w: [in_turn(w, VALUE_HEAD)]),
    "value_columns": ((HIDDEN, ALL_VALUES), lambda w: [in_turn(w.T, VALUE_HEAD).T]),
    "by_value_head": ((KEYS * PER_KEY, HIDDEN), lambda w: [in_turn(w, 1)]),
    "decay": ((KEYS * PER_KEY,), lambda w: [decay(w)]),
    "decay_by_value_head": ((KEYS * PER_KEY,), lambda w: [in_turn(decay(w), 1)]),
    "after_keys": ((2 * ALL_KEYS + ALL_VALUES, HIDDEN), lambda w: [after_keys(w)]),
    "convolution_after_keys": ((2 * ALL_KEYS + ALL_VALUES, 1, KERNEL), lambda w: [after_keys(w[:, 0])]),
    "convolution": ((2 * ALL_KEYS + ALL_VALUES, 1, KERNEL), lambda w: [w[:, 0]]),
    "short_convolution": ((HIDDEN, 1, KERNEL), lambda w: [w[:, 0]]),
    "gate_above_up": ((2 * FF, HIDDEN), lambda w: [w[:FF], w[FF:]]),
    "column": ((KEYS * PER_KEY,), lambda w: [w[:, None]]),
    "decay_column": ((KEYS * PER_KEY,), lambda w: [decay(w)[:, None]]),
    "by_group": ((8,), lambda w: [w.reshape(2, 4)]),
    "padded": ((VOCAB - 3, HIDDEN), lambda w: [np.concatenate([w, np.zeros((3, HIDDEN), np.float32)])]),
    "split_key_heads": ((2 * (ALL_KEYS + ALL_VALUES), HIDDEN), by_key_head),
}


def moved(sources: list[Array], order: Order) -> bytes:
    tensors = tuple(in_memory(f"t{i}", np.ascontiguousarray(a), "F32") for i, a in enumerate(sources))
    n = sum(a.size for a in sources)
    return b"".join(bytes(p) for p in converted(Piece(Tensor("out", "F32", sources[0].shape, 4 * n), tensors, order)))


def test_every_transform_has_a_case() -> None:
    """A transform that nobody compares could garble weights unseen."""
    assert set(CASES) == set(TRANSFORMS)


@pytest.mark.parametrize("piece", [1, 100, 1000, 4 << 20])
@pytest.mark.parametrize("worth", [1, 1 << 16], ids=["reads apart", "reads along"])
@pytest.mark.parametrize("name", CASES)
def test_rows_move_as_numpy_moves_them_and_back(name: str, piece: int, worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both directions of a transform are inverse to one another, and no size of a read changes a byte."""
    monkeypatch.setattr(rows, "READ_PIECE", piece)
    monkeypatch.setattr(rows, "WORTH_A_READ", worth)
    shape, split = CASES[name]
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted, transform = split(w), TRANSFORMS[name]
    for part, expected in enumerate(wanted):
        order = transform.to_gguf(SIZES, part)
        assert moved([w], order) == np.ascontiguousarray(expected).tobytes(), f"part {part}"
        assert order.shape in ((), expected.shape)
    back = transform.to_hf(SIZES)
    assert np.allclose(np.frombuffer(moved(wanted, back), np.float32).reshape(shape), w, rtol=0, atol=1e-6 if back.change else 0)


@pytest.mark.parametrize(
    "sizes", [SIZES, {k: 2 * n + 1 - n % 2 for k, n in SIZES.items()} | {"head": 8, "heads": 8, "kv_heads": 8} | LINEAR], ids=str
)
@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "padded" and TRANSFORMS[name].to_hf(SIZES).index is not None])
def test_each_row_is_taken_once_and_goes_back_to_its_place(name: str, sizes: Mapping[str, int]) -> None:
    """By the indices alone: what an inverse is computed of must be a permutation, or it would be no inverse."""
    taken, back = TRANSFORMS[name].take(sizes), TRANSFORMS[name].to_hf(sizes)
    whole = np.concatenate([np.asarray(p.index) for p in taken.parts])
    assert sorted(whole) == list(range(len(whole)))
    assert sorted(np.asarray(back.index)) == list(range(len(whole) * (1 if back.unit else taken.parts[0].unit or 1)))
    if back.unit:
        np.testing.assert_array_equal(whole[back.index], np.arange(len(whole)))


@pytest.mark.parametrize("piece", [1, 1000, 4 << 20])
def test_rows_are_multiplied_wherever_a_piece_begins(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All by one number, then some rows by each of several; a unit of work that begins further down takes its own rows' numbers."""
    monkeypatch.setattr(rows, "READ_PIECE", piece)
    w = np.random.default_rng(0).standard_normal((9, HIDDEN)).astype(np.float32)
    by = np.repeat(np.float32([0.3, 1.7, 0.9]), (2, 3, 4))
    expected = (w * np.float32(1.1)) * by[:, None]
    order = Order(times=(1.1, ((2, 0.3), (3, 1.7), (4, 0.9))))
    assert moved([w], order) == expected.tobytes()
    whole = Piece(Tensor("out", "F32", w.shape, w.nbytes), (in_memory("t", w, "F32"),), order)
    assert b"".join(bytes(p) for p in converted(replace(whole, blocks=(4, 9)))) == expected[4:].tobytes()


def test_a_read_takes_no_more_than_a_few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources taken in turn lie far apart: what is between them must not be read, however large it is."""
    monkeypatch.setattr(rows, "READ_PIECE", 1 << 10)
    monkeypatch.setattr(rows, "WORTH_A_READ", 1 << 8)
    sizes, longest = {**SIZES, "experts": 64, "expert_ff": 32}, 0
    read = Tensor.read

    def counted(t: Tensor, *where: int) -> NDArray[np.uint8]:
        nonlocal longest
        data = read(t, *where)
        longest = max(longest, data.nbytes)
        return data

    monkeypatch.setattr(Tensor, "read", counted)
    halves = [np.zeros((64, 32, HIDDEN), np.float32)] * 2
    assert len(moved(halves, TRANSFORMS["halves"].to_hf(sizes))) == 2 * halves[0].nbytes
    assert longest <= 4 * 32 * HIDDEN
    assert len(moved(halves, TRANSFORMS["columns_in_turn"].to_hf(sizes))) == 2 * halves[0].nbytes
    assert longest <= 4 * 64 * HIDDEN


def test_sources_of_different_types_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantized GGUF may keep DeepSeek's transposed keys in another type than the values beside them."""
    shape, split = CASES["latent"]
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float16).astype(np.float32)
    keys, values = (np.ascontiguousarray(x) for x in split(w))
    sources = (in_memory("k", keys.astype(np.float16), "F16"), in_memory("v", values, "F32"))
    piece = Piece(Tensor("out", "F32", shape, w.nbytes), sources, TRANSFORMS["latent"].to_hf(SIZES))
    assert piece.dtype == "F32"
    assert b"".join(bytes(p) for p in converted(piece)) == w.tobytes()


def test_plain_rows_are_the_files_own_bytes() -> None:
    w = np.arange(24, dtype=np.float32).reshape(6, 4)
    assert b"".join(bytes(p) for p in ordered([in_memory("t", w, "F32")], Order())) == w.tobytes()
