"""What people paste names a model: ids, addresses, quantizations and Modelfiles; on a Hub on loopback, with the unmodified client."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel
from hub_server import SHA, Hub, serving
from huggingface_hub import constants

from yarn_convert import Recipe, convert
from yarn_convert.checkpoint import hub_client, source
from yarn_convert.checkpoint.naming import Named, chosen, gguf_models, modelfile_from, named, plain_name, quantization_of
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.conversion import prepare
from yarn_convert.errors import InputError
from yarn_convert.formats import room
from yarn_convert.formats.gguf_file import open_gguf
from yarn_convert.options import ConvertOptions

NAMES = {
    "Qwen/Qwen3-8B": Named("Qwen/Qwen3-8B"),
    "https://huggingface.co/Qwen/Qwen3-8B": Named("Qwen/Qwen3-8B"),
    "huggingface.co/Qwen/Qwen3-8B/": Named("Qwen/Qwen3-8B"),
    "https://huggingface.co/Qwen/Qwen3-8B/tree/main": Named("Qwen/Qwen3-8B", "main"),
    "https://huggingface.co/a/b/tree/refs%2Fpr%2F3": Named("a/b", "refs/pr/3"),
    "https://huggingface.co/a/b/blob/v1/config.json": Named("a/b", "v1"),
    "https://huggingface.co/a/b-GGUF/blob/main/b.Q4_K_M.gguf": Named("a/b-GGUF", "main", "b.Q4_K_M.gguf"),
    "https://huggingface.co/a/b-GGUF/resolve/main/x/b.Q8_0.gguf?download=true": Named("a/b-GGUF", "main", "x/b.Q8_0.gguf"),
    "https://huggingface.co/a/b-GGUF/tree/main/Q8_0": Named("a/b-GGUF", "main", folder="Q8_0"),
    "hf.co/a/b-GGUF:Q4_K_M": Named("a/b-GGUF", tag="Q4_K_M"),
    "https://hf.co/a/b-GGUF:q4_k_m": Named("a/b-GGUF", tag="q4_k_m"),
    "hf.co/a/b-GGUF:latest": Named("a/b-GGUF"),
    "a/b-GGUF:IQ2_XXS": Named("a/b-GGUF", tag="IQ2_XXS"),
    "a/b-GGUF:b.Q4_K_M.gguf": Named("a/b-GGUF", tag="b.Q4_K_M.gguf"),
    "Qwen/Qwen3-8B/": Named("Qwen/Qwen3-8B"),
    "https://huggingface.co/a/b/commit/0a1b": Named("a/b", "0a1b"),
    "https://huggingface.co/a/b-GGUF?show_file_info=x%2Fb.Q8_0.gguf": Named("a/b-GGUF", file="x/b.Q8_0.gguf"),
    "https://huggingface.co/a/b-GGUF?local-app=ollama": Named("a/b-GGUF"),
    "hf://a/b": Named("a/b"), "hf://a/b@refs%2Fpr%2F3": Named("a/b", "refs/pr/3"),
    "hf://a/b-GGUF@v1/x/b.Q8_0.gguf": Named("a/b-GGUF", "v1", "x/b.Q8_0.gguf"), "hf://a/b-GGUF/b.Q8_0.gguf": Named("a/b-GGUF", "main", "b.Q8_0.gguf"),
    "models/x.gguf": None, "a/b/c": None, "a:b": None, "a/b:": None, "https://example.com/a/b": None, "hf.co": None, "C:\\a": None,
}  # fmt: skip


@pytest.mark.parametrize("text", NAMES)
def test_what_people_paste_is_read(text: str) -> None:
    assert named(text) == NAMES[text]


@pytest.mark.parametrize(
    "text", ["https://huggingface.co/datasets/a/b", "hf.co/a", "https://huggingface.co/a/b/discussions/1", "hf.co/a/.."]
)
def test_an_address_that_is_no_models_is_said(text: str) -> None:
    with pytest.raises(InputError, match="no model's address"):
        named(text)


@pytest.mark.parametrize(
    ("stem", "plain", "quantization"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M", "Llama-3.2-1B-Instruct", "Q4_K_M"), ("m.Q8_0", "m", "Q8_0"), ("Qwen3-8B-UD-Q4_K_XL", "Qwen3-8B", "UD-Q4_K_XL"),
        ("m-iq3_xxs", "m", "IQ3_XXS"), ("gpt-oss-20b-mxfp4", "gpt-oss-20b", "MXFP4"), ("m.BF16", "m", "BF16"), ("m-TQ1_0", "m", "TQ1_0"),
        ("Qwen3-8B", "Qwen3-8B", ""), ("QwQ-32B", "QwQ-32B", ""), ("Q4_0", "Q4_0", "Q4_0"), ("m-f16", "m", "F16"), ("m-Q4_K_M-v2", "m-Q4_K_M-v2", "Q4_K_M"),
    ],
)  # fmt: skip
def test_the_type_in_a_name(stem: str, plain: str, quantization: str) -> None:
    assert (plain_name(stem), quantization_of(f"{stem}.gguf")) == (plain, quantization)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "variable unset"), (" ", "variable unset"), ("Llama2-7", "did you mean llama2-7b?"), ("./tinny", "did you mean tiny?"),
        ("m.Q8_0.guf", "did you mean m.Q8_0.gguf?"), ("Qwen/Qwen3-8B@v1", "Qwen/Qwen3-8B with --revision v1, or Qwen/Qwen3-8B:v1"), ("a/b/c/d.gguf", "a/b is a/b:c/d.gguf"),
        ("https://example.com/a/b", "set HF_ENDPOINT to a mirror"), ("qwen3:8b", "modelfile qwen3:8b' prints"), ("qwen3:8b", "as qwen3-8b"),
        ("tiny/model.safetensors", "give the folder tiny"), ("tiny/tokenizer.json", "give the folder tiny"), ("\0", "give an alias"),
    ],
)  # fmt: skip
def test_a_name_that_is_none_is_answered_with_what_was_meant(
    text: str, hint: str, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model()
    (tmp_path / "m.Q8_0.gguf").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as e:
        resolve(text)
    assert hint in e.value.hint


FILES = {
    "m-Q4_K_M.gguf": 2_000_000_000, "m-Q8_0.gguf": 4_000_000_000, "m-UD-Q4_K_M.gguf": 5, "mmproj-m-F16.gguf": 1, "m.imatrix.gguf": 1, "README.md": 1,
    "BF16/m-BF16-00001-of-00002.gguf": 6_000_000_000, "BF16/m-BF16-00002-of-00002.gguf": 3_000_000_000, "m-F32-00001-of-00003.gguf": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("wish", "files"),
    [
        (Named("a/b", tag="q4_k_m"), ["m-Q4_K_M.gguf"]),
        (Named("a/b", tag="ud-q4_k_m"), ["m-UD-Q4_K_M.gguf"]),
        (Named("a/b", tag="M-q8_0.GGUF"), ["m-Q8_0.gguf"]),
        (Named("a/b", tag="bf16"), ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"]),
        (Named("a/b", file="BF16/m-BF16-00002-of-00002.gguf"), ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"]),
        (Named("a/b", folder="BF16"), ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"]),
    ],
)
def test_a_file_is_found_by_what_names_it(wish: Named, files: list[str]) -> None:
    assert list(chosen(gguf_models(FILES), wish).files) == files


def test_what_is_not_named_is_listed_a_split_one_once() -> None:
    with pytest.raises(InputError, match="has 4 GGUF models") as e:
        chosen(gguf_models(FILES), Named("a/b"))
    assert [line.split() for line in e.value.lines] == [
        ["BF16", "9.00", "GB", "BF16/m-BF16.gguf", "in", "2", "parts"], ["Q4_K_M", "2.00", "GB", "m-Q4_K_M.gguf"], ["Q8_0", "4.00", "GB", "m-Q8_0.gguf"],
        ["UD-Q4_K_M", "0.00", "GB", "m-UD-Q4_K_M.gguf"],
    ]  # fmt: skip
    assert "a/b:BF16" in e.value.hint
    with pytest.raises(InputError, match="no GGUF model 'q4_k'") as e:
        chosen(gguf_models(FILES), Named("a/b", tag="q4_k"))
    assert "did you mean q4_k_m?" in e.value.hint
    two = gguf_models({"m-Q8_0.gguf": 1, "n-Q8_0.gguf": 1})
    with pytest.raises(InputError, match="several") as e:
        chosen(two, Named("a/b", tag="Q8_0"))
    assert "a/b:m-Q8_0.gguf" in e.value.hint


def test_the_from_of_a_modelfile() -> None:
    assert modelfile_from('# FROM a\nTEMPLATE """\nFROM b\n"""\nfrom  "./c d.gguf"\nFROM e') == "./c d.gguf"
    assert modelfile_from("PARAMETER num_ctx 4") is None


# -- with a Hub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A repository of two quantizations, one in two parts, the RoPE of the other partly in a tensor; and its base."""
    base, ggufs = make_model(ff=1200), tmp_path / "ggufs"
    ggufs.mkdir()
    (tmp_path / "work").mkdir()
    convert(str(base), Recipe(scale=2), out="gguf", outtype="q8_0", carry="tensors", output=ggufs / "tiny-long-Q8_0.gguf")
    convert(str(base), Recipe(method="none"), out="gguf", output=ggufs / "tiny-F32.gguf", split_max_size="1M")
    monkeypatch.chdir(tmp_path / "work")
    hub = Hub({"some-org/tiny-GGUF": ggufs, "some-org/tiny": base})
    with serving(hub) as endpoint:
        for name, value in (("ENDPOINT", endpoint), ("HF_HUB_CACHE", str(tmp_path / "cache")), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield hub


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    return int(stop.value.code or 0), *capsys.readouterr()


def test_a_gguf_of_the_hub_is_extended_and_no_other_file_comes(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "hf.co/some-org/tiny-GGUF:q8_0", "--scale", "4", "-o", "x.gguf", "--json")
    assert code == 0, err
    base = json.loads(out)["base"]
    assert (base["repo"], base["commit"], base["name"]) == ("some-org/tiny-GGUF", SHA, "tiny-long")
    got = {e.path.rpartition("/")[2] for e in hub.log if e.method == "GET" and "/resolve/" in e.path}
    assert got == {"tiny-long-Q8_0.gguf", "tiny-long-Q8_0.yarn_convert.json"}
    convert(str(tmp_path / "ggufs" / "tiny-long-Q8_0.gguf"), Recipe(scale=4), output=tmp_path / "y.gguf")
    ours, theirs = (open_gguf(p) for p in (Path("x.gguf"), tmp_path / "y.gguf"))
    assert ours.fields == theirs.fields and ours.size == theirs.size
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve("some-org/tiny-GGUF").path.name == "tiny-long-Q8_0.gguf", "without a network what was downloaded"


def test_a_dry_run_and_inspect_read_the_header_alone(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = json.loads(run(capsys, "inspect", str(tmp_path / "ggufs" / "tiny-long-Q8_0.gguf"), "--json")[1])
    address = "https://huggingface.co/some-org/tiny-GGUF/blob/main/tiny-long-Q8_0.gguf"
    away = json.loads(run(capsys, "inspect", address, "--json")[1])
    assert (away.pop("repo"), away.pop("commit")) == ("some-org/tiny-GGUF", SHA)
    assert away == {k: v for k, v in local.items() if k not in ("repo", "commit")}
    code, out, err = run(capsys, "some-org/tiny-GGUF:F32", "--scale", "4", "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["context"] == 4 * CONTEXT
    bodies = [e for e in hub.log if e.method == "GET" and e.path.endswith(".gguf")]
    assert len(bodies) >= 3 and all(e.range for e in bodies), "of a split one each part's header"
    code, out, err = run(capsys, f"https://huggingface.co/some-org/tiny/tree/{SHA}", "--scale", "4", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["output"] == "tiny-yarn-256", "and of a model in one file of safetensors"


def test_a_header_longer_than_one_read_comes_in_several(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "FIRST_READ", 512)
    monkeypatch.setattr(source, "_scratch", lambda: tmp_path / "scratch")
    found = resolve("some-org/tiny-GGUF:Q8_0", weights=False)
    here, there = open_gguf(found.path), open_gguf(tmp_path / "ggufs" / "tiny-long-Q8_0.gguf")
    assert (here.fields, list(here.tensors), found.headers) == (there.fields, list(there.tensors), {})
    factors = "rope_freqs.weight"
    assert np.array_equal(here.tensors[factors].read(), there.tensors[factors].read()) and here.tensors[factors].read().any()
    assert sum(e.sent for e in hub.log if e.path.endswith(".gguf")) < there.size / 2


def test_a_hub_that_has_no_model_and_a_cache_that_takes_none(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("soon")
    hub.repos |= Hub({"some-org/empty": tmp_path / "empty"}).repos
    for weights in (True, False):
        with pytest.raises(InputError, match=r"some-org/empty on the Hub has no config.json and no GGUF"):
            resolve("some-org/empty", weights=weights)
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="could not write some-org/tiny to the Hub's cache: Not a directory") as e:
        resolve("some-org/tiny")
    assert "HF_HOME" in e.value.hint


def test_only_errors_of_the_disk_are_taken_for_such() -> None:
    said = {kind: hub_client.hub_error("a/b", e) for kind, e in (
        ("full", OSError(errno.ENOSPC, "")), ("refused", ConnectionRefusedError(errno.ECONNREFUSED, "")),
    )}  # fmt: skip
    assert "No space left" in said["full"].message and "HF_HOME" in said["full"].hint
    assert "could not get a/b" in said["refused"].message and "network" in said["refused"].hint


def test_weights_that_were_only_looked_at_are_not_left(hub: Hub) -> None:
    resolve("some-org/tiny")
    plan = prepare("some-org/tiny", ConvertOptions(Recipe(scale=4)), weights=False).plan
    assert plan.left == () and not any(job.name == "model.safetensors" for job in plan.jobs)


def test_several_ggufs_are_listed_in_lines(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "https://hf.co/some-org/tiny-GGUF", "--scale", "4")
    error, *lines, hint = err.splitlines()
    assert code == 1 and "has 2 GGUF models" in error and hint.startswith("hint:") and "some-org/tiny-GGUF:F32" in hint
    assert [line.split()[0] for line in lines] == ["F32", "Q8_0"]
    code, _, err = run(capsys, "some-org/tiny-GGUF:Q8", "--scale", "4")
    assert code == 1 and "did you mean q8_0?" in err
    assert run(capsys, "some-org/tiny:Q8_0", "--scale", "4")[2].startswith("error: some-org/tiny on the Hub has no GGUF model")
    code, _, err = run(capsys, "https://huggingface.co/some-org/tiny/tree/main", "--revision", "v2", "--scale", "4")
    assert code == 1 and "the revision 'main', --revision 'v2'" in err


def test_a_folder_that_is_there_wins(hub: Hub, tmp_path: Path) -> None:
    Path("hf.co/some-org").mkdir(parents=True)
    (tmp_path / "tiny").rename("hf.co/some-org/tiny")
    assert resolve("hf.co/some-org/tiny").repo is None
    assert hub.log == []


def test_a_modelfile_names_its_model(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ggufs" / "Modelfile"

    def of(line: str) -> Path:
        path.write_text(f"{line}\nPARAMETER num_ctx 4096\n")
        return resolve(str(path), weights=False).path

    assert of("FROM ./tiny-long-Q8_0.gguf").samefile(tmp_path / "ggufs" / "tiny-long-Q8_0.gguf")
    assert of("FROM hf.co/some-org/tiny-GGUF:Q8_0").name == "tiny-long-Q8_0.gguf"
    for line, says in {
        "FROM llama3.2": "a name of Ollama's own library", "FROM some-org/tiny": "a name of Ollama's own library", "# nothing": "has no FROM",
        "FROM ./absent.gguf": "is not there", "FROM ../tiny": "leads out of its folder", f"FROM {tmp_path / 'tiny'}": "leads out",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=says):
            of(line)
    assert run(capsys, "inspect", str(path), "--follow-links")[0] == 0


def test_a_name_of_ollama_is_said_to_be_one() -> None:
    with pytest.raises(InputError, match="Ollama's own library") as e:
        resolve("llama3.2:3b")
    assert "ollama show --modelfile" in e.value.hint


def test_a_download_that_does_not_fit_is_foreseen(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "tiny-long-Q8_0.gguf"
    size = (tmp_path / "ggufs" / name).stat().st_size
    monkeypatch.setattr(room, "kind_of", lambda folder: "ext4")
    free = [size]
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, (1 << 40) - free[0], free[0]))
    code, _, err = run(capsys, "some-org/tiny-GGUF:Q8_0", "--scale", "4")
    error, hint = err.splitlines()[-2:]
    assert code == 1 and error.startswith("error: the download of some-org/tiny-GGUF (") and "HF_HOME" in hint and "--stream" in hint
    assert not any(e.path.endswith(".gguf") for e in hub.log if e.method == "GET")
    code, out, err = run(capsys, "some-org/tiny-GGUF:Q8_0", "--scale", "4", "--dry-run", "--json")
    assert code == 0, (out, err)
    download, output = json.loads(out)["disk"]
    assert code == 0 and download["needed"] == sum(t.nbytes for t in open_gguf(tmp_path / "ggufs" / name).tensors.values()) - 32
    assert (output["needed"], output["fits"]) == (json.loads(out)["bytes"], output["needed"] <= size)
    lines = " ".join(run(capsys, "some-org/tiny-GGUF:Q8_0", "--scale", "4", "--dry-run")[2].split())
    assert "will not fit" in lines and "the download of some-org/tiny-GGUF" in lines and "tiny-long-yarn-256" in lines
    blobs = tmp_path / "cache" / "models--some-org--tiny-GGUF" / "blobs"
    (blobs / "0123.incomplete").write_bytes(bytes(20_000))
    free[0] = size
    assert run(capsys, "some-org/tiny-GGUF:Q8_0", "--scale", "4", "-o", str(tmp_path / "work" / "x.gguf"), "-q")[0] == 0


def test_a_large_download_waits_until_the_output_has_room_too(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(source, "FORESEEN", 0)
    monkeypatch.setattr(room, "kind_of", lambda folder: "ext4")
    usage, free = type(shutil.disk_usage("/")), [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, (1 << 40) - free[0], free[0]))
    size = (tmp_path / "tiny" / "model.safetensors").stat().st_size
    free[0] = int(1.9 * size)
    code, _, err = run(capsys, "some-org/tiny", "--scale", "4", "--out", "gguf")
    error, hint = err.splitlines()[-2:]
    assert (
        code == 1 and "the download of some-org/tiny (" in error and " and tiny-yarn-256.gguf (" in error and "-o on another disk" in hint
    )
    code, _, err = run(capsys, "some-org/tiny", "--scale", "4", "--out", "gguf", "--outtype", "q9")
    assert code == 1 and "q9" in err
    assert all(e.range for e in hub.log if e.method == "GET" and e.path.endswith(".safetensors")), "headers alone"
    free[0] = int(2.2 * size)
    assert run(capsys, "some-org/tiny", "--scale", "4", "--out", "gguf", "-q")[0] == 0
