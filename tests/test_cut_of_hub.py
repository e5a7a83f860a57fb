"""`validate --cut` of an output that was published: of its weights, and of its base's, nothing but the cut comes from the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_model
from hub_server import Hub, serving
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from test_cut import TEXT, opened, permuted_k, spoilt, written
from test_naming import run
from test_validate import rewritten

from yarn_convert.checkpoint import open_checkpoint, source
from yarn_convert.checkpoint.ranges import fetched
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.reference import SHARE
from yarn_convert.conversion.intention import Intention, check_recipe
from yarn_convert.formats.gguf_file import Value, open_gguf
from yarn_convert.validation import check, lines
from yarn_convert.validation.cut import needed
from yarn_convert.validation.result import validated

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")
HEADER = 1 << 14  # bytes of a GGUF that are asked for at first, here
ELSE = 130_000  # bytes of a model that are no tensors: the client takes 100,000 of each shard for its header


@contextmanager
def published(monkeypatch: pytest.MonkeyPatch, folder: Path, **repos: Path) -> Iterator[Hub]:
    """A Hub of some-org's repositories, which the unmodified client asks in this process; all that comes lies below `folder`."""
    hub = Hub({f"some-org/{name}": path for name, path in repos.items()})
    monkeypatch.setattr(source, "_scratch", lambda: folder / "headers")
    monkeypatch.setattr(source, "FIRST_READ", HEADER)
    with serving(hub) as endpoint:
        for name, value in (("ENDPOINT", endpoint), ("HF_HUB_CACHE", str(folder / "cache")), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield hub


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base of 30 layers, and its outputs: in F32, and a GGUF in F16 in parts."""
    folder = tmp_path_factory.mktemp("published")
    plain = make_model.__wrapped__ if hasattr(make_model, "__wrapped__") else make_model.__pytest_wrapped__.obj
    base = plain(folder)(layers=30, shards=2)
    found = {"base": base, "gguf": written(base, folder / "f32" / "long.gguf"), "hf": written(base, folder / "long")}
    found["parts"] = written(base, folder / "parts" / "f16" / "long.gguf", outtype="f16", split_max_size="1M").parent.parent
    return found


def folder_of(out: Path) -> Path:
    """The repository of an output: a GGUF's folder, with its manifest."""
    return out.parent if out.suffix else out


@pytest.mark.parametrize("kind", ["parts", "hf"])
def test_of_a_published_output_the_cut_alone_is_fetched(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    out, base = models[kind], models["base"]
    local = out if kind == "hf" else min(out.rglob("*.gguf"))
    with published(monkeypatch, tmp_path, output=out, tiny=base) as hub:
        result = check("some-org/output", replace(TEXT, base="some-org/tiny"))
    here = check(str(local), replace(TEXT, base=str(base)))
    for key in ("verdict", "intention", "recipe", "tokenizer", "reasons"):
        assert result[key] == here[key], key
    assert (result["verdict"], result["weights"]["verdict"]) == ("passed", "unchecked")
    cut, *excerpt = result["studies"]
    assert [cut["kept"], *(s["kept"] for s in excerpt)] == ([[0, 1], [0, 1]] if kind == "parts" else [[0, 1]])
    theirs = here["studies"][0]
    assert [cut[k] for k in ("of_base", "wrong_recipes", "tolerance")] == [theirs[k] for k in ("of_base", "wrong_recipes", "tolerance")]
    assert [r["windows"] for r in cut["runtimes"]] == [r["windows"] for r in theirs["runtimes"]] != []
    sizes = [sum(t.nbytes for t in needed(opened(path), (0, 1)).values()) for path in (local, base)]
    assert cut["fetched"] == sum(sizes)
    for name, size in zip(("output", "tiny"), sizes, strict=True):
        assert size < hub.sent[f"some-org/{name}"] < size + 2 * ELSE
    whole = [e for e in hub.log if e.method == "GET" and e.path.endswith((".gguf", ".safetensors")) and not e.range]
    assert whole == [] and not list(tmp_path.rglob("*.safetensors"))
    assert any(line.startswith("layers 0–1 in float32") for line in lines(validated(result))) == (kind == "parts")
    assert (result["commit"], kind == "hf" or result["files"] == {}) == (hub.repos["some-org/output"].at().sha, True)


UNASKED = replace(TEXT, cut=None)


def holding(monkeypatch: pytest.MonkeyPatch, parameters: float) -> None:
    """A memory in which the reference has room for so many."""
    monkeypatch.setattr("yarn_convert.compute.reference.free_memory", lambda device: int(4 * parameters / SHARE))


@pytest.mark.parametrize("kind", ["gguf", "parts", "hf"])
def test_what_the_memory_does_not_hold_is_not_fetched_whole(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """The headers decide; what comes and what is said then are those of --cut 2, and one line before says what to do about it."""
    local = opened(models[kind] if kind == "hf" else min(folder_of(models[kind]).rglob("*.gguf")))
    holding(monkeypatch, sum(t.elements for t in local.tensors.values()) / 2)
    told: list[str] = []
    with published(monkeypatch, tmp_path / "asked", output=folder_of(models[kind]), tiny=models["base"]) as hub:
        asked = check("some-org/output", replace(TEXT, base="some-org/tiny"))
        come = {repo: hub.sent[repo] for repo in hub.repos}
    with published(monkeypatch, tmp_path / "unasked", output=folder_of(models[kind]), tiny=models["base"]) as hub:
        result = check("some-org/output", replace(UNASKED, base="some-org/tiny"), tell=told.append)
        assert {repo: hub.sent[repo] for repo in hub.repos} == come
    assert {k for k in asked if result[k] != asked[k]} <= {"studies", "created", "files"}
    assert result["files"].keys() == asked["files"].keys()
    for key in ("kind", "kept", "fetched", "of_base", "wrong_recipes", "tolerance"):
        assert [s.get(key) for s in result["studies"]] == [s.get(key) for s in asked["studies"]]
    (line,) = told
    both = [
        (sum(t.nbytes for t in needed(c, (0, 1)).values()), sum(t.nbytes for t in c.tensors.values()))
        for c in (local, opened(models["base"]))
    ]
    for (part, whole), repo in zip(both, ("output", "tiny"), strict=True):
        assert f"{part / 1e9:.2f} of {whole / 1e9:.2f} GB of some-org/{repo}" in line
        assert come[f"some-org/{repo}"] < part + 2 * ELSE
    assert "--cut 0" in line


def test_a_base_of_which_the_cut_alone_will_do_is_not_fetched_whole(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of an output that lies here and is cut; with more memory all of the base is there to compare with."""
    sizes = {path: sum(t.nbytes for t in needed(opened(models["base"]), path).values()) for path in ((0, 1), tuple(range(30)))}
    few, all_of_it = sizes.values()
    for share, verdict, kind, least, most in (
        (0.5, "unchecked", "cut", few, few + 2 * ELSE),
        (2, "passed", "real", all_of_it, 2 * all_of_it),
    ):
        holding(monkeypatch, share * all_of_it / 4)
        with published(monkeypatch, tmp_path / kind, tiny=models["base"]) as hub:
            result = check(str(models["gguf"]), replace(UNASKED, base="some-org/tiny"))
            assert least < hub.sent["some-org/tiny"] < most
        assert (result["weights"]["verdict"], result["studies"][0]["kind"]) == (verdict, kind)


def test_what_is_in_the_cache_whole_is_compared_whole(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing would be spared, so all of the weights are the base's or not, and the cut is run as of any model here."""
    holding(monkeypatch, 1 << 16)
    told: list[str] = []
    with published(monkeypatch, tmp_path, output=models["parts"], tiny=models["base"]):
        for name in ("output", "tiny"):
            resolve(f"some-org/{name}")
        result = check("some-org/output", replace(UNASKED, base="some-org/tiny"), tell=told.append)
    assert (result["verdict"], result["weights"]["verdict"], result["studies"][0]["kind"], told) == ("passed", "passed", "cut", [])


def test_what_lies_in_the_cache_is_not_fetched_again(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with published(monkeypatch, tmp_path, output=models["parts"]) as hub:
        resolve("some-org/output")
        c = open_checkpoint(resolve("some-org/output", weights=False))
        before = len(hub.log)
        (tmp_path / "few").mkdir()
        found = fetched(c, [*needed(c, (0,))], tmp_path / "few", lambda n: None)
        assert len(hub.log) == before
    local = opened(min(models["parts"].rglob("*.gguf")))
    assert all(np.array_equal(t.read(), local.tensors[name].read()) for name, t in found.tensors.items())


@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_a_published_output_with_a_fault_fails_by_its_name(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    bad, wrong = tmp_path / "bad" / models[kind].name, tmp_path / "wrong" / "long.gguf"
    bad.parent.mkdir()
    spoilt_as(models, kind, bad)
    shutil.copytree(models["gguf"].parent, wrong.parent)
    rewritten(wrong, {"llama.rope.scaling.factor": Value("f32", 8.0)})
    settings = replace(TEXT, base="some-org/base", trace=True)
    with published(monkeypatch, tmp_path, bad=folder_of(bad), wrong=wrong.parent, base=models["base"]):
        result = check("some-org/bad", settings)
        study, tensor = result["studies"][0], "blk.1.attn_k.weight" if kind == "gguf" else "model.layers.1.self_attn.k_proj.weight"
        assert (result["verdict"], study["of_base"]["verdict"]) == ("failed", "failed")
        assert [*study["trace"]["tensors"]] == [tensor]
        assert study["trace"]["modules"][0]["first"] == "layers.1.self_attn.k_proj"
        if kind == "hf":
            return
        result = check("some-org/wrong", replace(settings, like=str(models[kind])))
        assert (result["verdict"], result["recipe"]["verdict"], result["recipe"]["layer"]) == ("failed", "failed", "table")
        assert result["studies"][0]["trace"]["modules"][-1]["first"].startswith("layers.0.q after RoPE")


def spoilt_as(models: dict[str, Path], kind: str, to: Path) -> None:
    if kind == "gguf":
        spoilt(models["gguf"], permuted_k, to)
        return
    shutil.copytree(models["hf"], to)
    name = "model.layers.1.self_attn.k_proj.weight"
    shard = next(path for path in to.glob("model-*.safetensors") if name in load_file(path))
    held = load_file(shard)
    arrays = {"blk.1.attn_k.weight": held[name]}
    permuted_k(arrays)
    save_file(held | {name: np.ascontiguousarray(*arrays.values())}, shard, {"format": "pt"})


def test_a_table_in_a_file_of_its_own_comes_with_a_published_output(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """rope.safetensors, and the frequencies in a GGUF, which lie among the weights."""
    hf = written(models["base"], tmp_path / "hf", carry="tensors")
    gguf = written(models["base"], tmp_path / "gguf" / "long.gguf", carry="tensors")
    held = load_file(hf / "rope.safetensors")
    held["rotary_emb.inv_freq"][3] *= 1.5
    with (hf / "rope.safetensors").open("r+b") as f:
        f.seek(-held["rotary_emb.inv_freq"].nbytes, 2)
        f.write(held["rotary_emb.inv_freq"].tobytes())
    factors = open_gguf(gguf).tensors["rope_freqs.weight"].read().view(np.float32).copy()
    factors[3] *= 1.5
    rewritten(gguf, {}, {"rope_freqs.weight": factors.tobytes()})
    meant = opened(models["gguf"])
    with published(monkeypatch, tmp_path, hf=hf, gguf=gguf.parent):
        for name, says in (("hf", "rope.safetensors holds another table"), ("gguf", "frequencies off by up to 0.33")):
            c = open_checkpoint(resolve(f"some-org/{name}", weights=False))
            assert says in check_recipe(c, Intention(meant.rope, meant.context, ""))["why"]


@pytest.mark.parametrize(
    ("words", "says", "hint"),
    [
        (("some-org/absent",), "does not exist on the Hub, or is private", "spelling"),
        (("some-org/closed",), "some-org/closed is gated", "licence"),
        (("some-org/closed-gguf",), "some-org/closed-gguf is gated", "licence"),
        (("some-org/secret",), "does not exist on the Hub, or is private", "hf auth login"),
        (("some-org/open", "--base", "some-org/closed"), "some-org/closed is gated", "licence"),
        (("some-org/open", "--base", "some-org/absent"), "does not exist on the Hub, or is private", "spelling"),
    ],
)
def test_what_may_not_be_read_is_one_line(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], says: str, hint: str,
) -> None:  # fmt: skip
    repos = {"open": models["hf"], "closed": models["hf"], "closed-gguf": models["gguf"].parent, "secret": models["hf"]}
    with published(monkeypatch, tmp_path, **repos) as hub:
        hub.repos["some-org/closed"].gated = hub.repos["some-org/closed-gguf"].gated = "auto"
        hub.repos["some-org/secret"].private = True
        code, _, err = run(capsys, "validate", *words, "--cut", "2", "-q")
    error, line = err.splitlines()
    assert (code, says in error, hint in line) == (1, True, True), err


def test_a_hub_that_goes_away_meanwhile_is_one_line(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the headers came."""
    with published(monkeypatch, tmp_path, output=models["parts"]) as hub:
        opening: Callable[..., Any] = open_checkpoint

        def opened_once(where: Any) -> Any:
            hub.gated = True
            return opening(where)

        monkeypatch.setattr("yarn_convert.validation.opening.open_checkpoint", opened_once)
        code, _, err = run(capsys, "validate", "some-org/output", "--cut", "2", "--real")
    assert (code, err.splitlines()[-2:][0]) == (1, "error: some-org/output is gated"), err
