"""Every parser of a model's files over mutated inputs, fast: `python tests/fuzz_parsers.py 20000 [KIND…]`. Whatever is neither a result
nor a YarnConvertError of one line with a hint is reported. tests/hostile_fuzz.py holds two of them to stricter laws."""

from __future__ import annotations

import collections
import copy
import io
import json
import random
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_fuzz
import numpy as np
from conftest import tokenizer_files
from hostile_models import CONFIG, hf_folder, hf_shards

from yarn_convert import tokenizers
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.manifest import MANIFEST, read_manifest, recipe_in
from yarn_convert.checkpoint.source import Source
from yarn_convert.conversion.describe import describe
from yarn_convert.conversion.recipes import read_recipe
from yarn_convert.errors import YarnConvertError
from yarn_convert.evaluation.journal import ResultJournal
from yarn_convert.formats import general
from yarn_convert.formats.gguf_file import open_gguf
from yarn_convert.formats.imatrix import read_imatrix
from yarn_convert.formats.pickles import check_pickle
from yarn_convert.formats.tensors import load_json, read_folder, read_safetensors
from yarn_convert.rope import Rope, recipe_of
from yarn_convert.targets import in_place, resume
from yarn_convert.tokenizers.sentencepiece_model import read_sentencepiece

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 10**400, 0.0, -1.5, 1e308, float("nan"), float("inf"), "", "x", "7", "\x1b[31m", "\ud800", [],
    [1], [[]], ["x"], {}, {"a": 1}, {"content": 7}, [{"id": "x"}],
)  # fmt: skip
BYTES = (
    b"\0",
    b"\xff",
    b'"',
    b"{",
    b"[",
    b"]",
    b"}",
    b"\\u0000",
    b"1e999",
    b"-",
    b"NaN",
    b",",
    b"true",
    b"\x80\x05",
    struct.pack("<Q", 2**63),
)


def structural(text: bytes, rng: random.Random) -> bytes:
    """JSON with one to three of its values replaced, removed or moved."""
    root = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        node, key = root, None
        while isinstance(node, dict | list) and node:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            parent, key = node, rng.choice(keys)
            node = node[key]
            if rng.random() < 0.4:
                break
        if key is None:
            return json.dumps(rng.choice(VALUES)).encode()
        if rng.random() < 0.2:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(root).encode()


def bytewise(data: bytes, rng: random.Random) -> bytes:
    """Up to four bytes flipped, cut out, put in, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= rng.randint(1, 255)
        elif kind == 1:
            out[at:at] = rng.choice(BYTES)
        elif kind == 2:
            del out[at : at + rng.randint(1, 16)]
        elif kind == 3:
            out[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**16, 2**31, 2**32, 2**60, 2**63, 2**64 - 1, len(out))))
        elif kind == 4:
            out[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 8, 9, 13, 2**31, 2**32 - 1)))
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


class Kind:
    """A file, its sound content, and what reads it. `json`: half of the mutations are of its values."""

    def __init__(self, path: Path, sound: bytes, read: Callable[[], Any], is_json: bool = True) -> None:
        self.path, self.sound, self.read, self.is_json = path, sound, read, is_json

    def once(self, rng: random.Random) -> str:
        """Which end it took: "read", "refused", or a traceback."""
        mutate = structural if self.is_json and rng.random() < 0.6 else bytewise
        self.path.write_bytes(mutate(self.sound, rng))
        try:
            self.read()
        except YarnConvertError as e:
            return "refused" if e.hint and e.message.isprintable() else f"an error without a hint: {e}"
        except Exception:
            return traceback.format_exc()
        return "read"


def opened(folder: Path) -> None:
    describe(open_checkpoint(Source(folder, "m", headers={})))


def kinds(root: Path) -> dict[str, Kind]:
    """All parsers, each in a folder of its own."""
    made: dict[str, Kind] = {}
    for of in (configs, tokenizer, records, recipes, beside, weights, journals):
        made |= of(root)
    return made


def configs(root: Path) -> dict[str, Kind]:
    made: dict[str, Kind] = {}
    for name, config in {
        "config.json": CONFIG,
        "config.json of deepseek_v3": {
            **CONFIG, "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "kv_lora_rank": 8,
            "q_lora_rank": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        "config.json of gemma3": {
            **CONFIG, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 32, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
        },
        "config.json of falcon": {**CONFIG, "model_type": "falcon", "architectures": ["FalconForCausalLM"], "n_head": 4, "num_kv_heads": 2},
    }.items():  # fmt: skip
        folder = root / name
        folder.mkdir()
        made[name] = Kind(folder / "config.json", json.dumps(config).encode(), lambda folder=folder: opened(folder))
    return made


def tokenizer(root: Path) -> dict[str, Kind]:
    folder = hf_folder(root / "tokenizer")
    for file, data in tokenizer_files().items():
        (folder / file).write_bytes(data)

    def read() -> None:
        try:
            tokenizers.to_gguf(folder, {"model_type": "llama", "vocab_size": 263})
            tokenizers.caveats(tokenizers.files_of(folder), "m")
        finally:
            for file, data in sound.items():
                (folder / file).write_bytes(data)

    sound = tokenizer_files()
    return {file: Kind(folder / file, sound[file], read) for file in ("tokenizer.json", "tokenizer_config.json")}


def records(root: Path) -> dict[str, Kind]:
    """What a conversion leaves beside its output, and in a GGUF."""
    out = hf_folder(root / "out")
    recipe = recipe_of(Rope("yarn", 1e4, 16, 64, {"factor": 4.0, "beta_fast": 32.0}, Rope("linear", 1e4, 16, 64, {"factor": 2.0})))
    manifest = {
        "yarn_convert": "0.1.0", "created": "2026", "base": {"name": "m", "repo": "a/b", "commit": "c", "format": "gguf"}, "format": "gguf", "recipe": recipe,
        "context": 256, "scale": 4.0, "weights": {"identical_to_base": True, "files": [{"file": "m", "bytes": 4, "how": "copy", "sha256": "0"}]},
        "readers": {"a": "exact"}, "notes": ["n"], "versions": {"python": "3"},
        "validation": {"verdict": "passed", "created": "2026", "studies": [{"kind": "real", "tokens": 9, "runtimes": [{"runtime": "x", "verdict": "passed", "windows": [{"nmse": 1e-9, "top1": 1.0}]}]}]},
        "evaluation": {"runtime": "x", "base": {"model": "b", "points": [{"window": 8, "perplexity": 2.0}]}, "points": [], "documents": [{"name": "d"}]},
    }  # fmt: skip

    def manifests() -> None:
        found = read_manifest(out)
        if found:
            found.recipe.rope()

    recipe_file = root / "recipe"
    return {
        "manifest": Kind(out / MANIFEST, json.dumps(manifest).encode(), manifests),
        "recipe in a GGUF": Kind(
            recipe_file, json.dumps(recipe).encode(), lambda: recipe_in(recipe_file.read_bytes().decode("utf-8", "surrogateescape")).rope()
        ),
    }


def beside(root: Path) -> dict[str, Kind]:
    """What is said of a model beside its weights and its tokenizer."""
    generation = root / "generation_config.json"
    sampling = {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "do_sample": True, "eos_token_id": [1, 2], "repetition_penalty": 1.1}
    card = root / "card"
    return {
        "generation_config.json": Kind(
            generation,
            json.dumps(sampling).encode(),
            lambda: general.general_keys({"license": "mit"}, {}, load_json(generation), "m", {}),
        ),
        "metadata of README.md": Kind(
            card,
            b"---\nlicense: mit\ntags: [a, b]\nlanguage:\n- en\n---\n# x\n",
            lambda: general.front_matter(card.read_bytes().decode("utf-8", "replace")),
            False,
        ),
    }


def weights(root: Path) -> dict[str, Kind]:
    """The heads of weight files, and what lies in files of the same kind."""
    shards = hf_shards(root / "shards")
    index = shards / "model.safetensors.index.json"
    made = {"index": Kind(index, index.read_bytes(), lambda: read_folder(shards))}
    files: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
        "safetensors header": (hostile_fuzz.safetensors_file(), read_safetensors),
        "GGUF header": (hostile_fuzz.gguf_file(), lambda p: [f.value for f in open_gguf(p).fields.values()]),
        "pickle": (pickled(), check_pickle),
        "imatrix": (dat(), read_imatrix),
        "SentencePiece model": (sentencepiece(), lambda p: read_sentencepiece(p.read_bytes())),
    }
    for name, (sound, read) in files.items():
        path = root / name.replace(" ", "-")
        made[name] = Kind(path, sound, lambda path=path, read=read: read(path), False)
    return made


def recipes(root: Path) -> dict[str, Kind]:
    """What --recipe takes: our own form in both, a log of LongRoPE's, a config.json with lists, and a table."""
    lists = {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.0, 4.0], "original_max_position_embeddings": 64}
    files = {
        "r.yaml": b"method: explicit\ncontext: 32k\nfactors: [1.0, 2.5, 1e3]\nattention_factor: 1.1\nnote: x\n",
        "r.json": json.dumps({"method": "yarn", "scale": 4, "truncate": False, "ramp": "index", "original_context": 64}).encode(),
        "log.json": json.dumps({"iteration": 1, "population": [[[1.0, 2.0], 3.5], [[1.0, 3.0], 2.5]]}).encode(),
        "lists.json": json.dumps({"rope_scaling": lists, "max_position_embeddings": 256, "rope_theta": 1e4}).encode(),
        "table.csv": b"1.0,2.5,4\n1.0,2.5,4\n",
    }
    read = {name: (lambda name=name: read_recipe(root / name)) for name in files}
    return {f"recipe, {name}": Kind(root / name, sound, read[name], name.endswith("json")) for name, sound in files.items()}


def journals(root: Path) -> dict[str, Kind]:
    kept = root / "kept"
    partial = root / ".o.partial"
    (partial / "files").mkdir(parents=True)
    (partial / "files" / "x").write_bytes(bytes(64))
    edited = root / "m.gguf"

    def evaluation() -> None:
        ResultJournal(kept).remove()

    def conversion() -> None:
        (partial / "files").mkdir(exist_ok=True)
        journal = resume.open_journal(partial, root / "o")
        assert journal is not None
        try:
            journal.begin("k", {"x": 64}, lambda line: None)
        finally:
            journal.close()

    def edit() -> None:
        edited.write_bytes(hostile_fuzz.gguf_file())
        in_place.recover(edited)

    side = in_place.journal_path(edited)
    lines = b'{"plan": "k"}\n["x", 0, 32]\n["x", 32, 32]\n'
    return {
        "journal of an evaluation": Kind(kept, b'["' + b"0" * 64 + b'", [1.0, 2]]\n["' + b"1" * 64 + b'", {"a": 1}]\n', evaluation, False),
        "journal of a conversion": Kind(partial / resume.JOURNAL, lines, conversion, False),
        "journal of an edit in place": Kind(side, b'{"sha256": "0"}\n{"inserted": 0, "header": "", "patches": []}', edit, False),
    }


def pickled() -> bytes:
    import torch

    data = io.BytesIO()
    torch.save(collections.OrderedDict(a=torch.zeros(2, 3), b=torch.ones(4)), data)
    return data.getvalue()


def dat() -> bytes:
    """llama-imatrix's older format: entries of (name, calls, values), then the last chunk and the dataset."""
    entry = struct.pack("<i", 21) + b"blk.0.ffn_down.weight" + struct.pack("<ii", 1, 4) + np.ones(4, np.float32).tobytes()
    return struct.pack("<i", 2) + entry + entry.replace(b"blk.0", b"blk.1") + struct.pack("<ii", 1, 1) + b"d"


def sentencepiece() -> bytes:
    from yarn_convert.tokenizers.sentencepiece_model import write_model
    from yarn_convert.tokenizers.vocabulary import Vocabulary

    tokens = ["<unk>", "<s>", "</s>", "▁a", "b"]
    return write_model(Vocabulary(tokens, [2, 3, 3, 1, 1], [0.0, 0.0, 0.0, -1.0, -2.0]), {"bos": 1, "eos": 2, "unk": 0}, True)


def fuzz(examples: int, root: Path, only: tuple[str, ...] = (), seed: int = 0) -> dict[str, tuple[collections.Counter[str], float]]:
    """kind -> (how many inputs took which end, seconds)."""
    warnings.simplefilter("ignore")
    found = {}
    for name, kind in kinds(root).items():
        if only and name not in only:
            continue
        rng, ends, start = random.Random(f"{seed} {name}"), collections.Counter[str](), time.monotonic()
        for _ in range(examples):
            ends[kind.once(rng)] += 1
        kind.path.unlink(missing_ok=True)
        found[name] = ends, time.monotonic() - start
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name, (ends, seconds) in fuzz(int(sys.argv[1]), Path(folder), tuple(sys.argv[2:])).items():
            usual = {end: ends.pop(end, 0) for end in ("read", "refused")}
            print(f"{name}: {usual['read']:,} read, {usual['refused']:,} refused, {sum(ends.values())} others, {seconds:.0f} s", flush=True)
            for end, n in ends.most_common(3):
                print(n, end)
