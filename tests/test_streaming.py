"""`--stream`: a GGUF of a model on the Hub whose weight files never lie here, byte for byte that of the downloaded model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel
from hub_server import Fault, File, Hub, serving
from huggingface_hub import constants

from yarn_convert.checkpoint import hub_client, source, streaming
from yarn_convert.conversion import convert
from yarn_convert.conversion.several import prepare_each, run_each
from yarn_convert.errors import InputError, Unreachable, UsageError
from yarn_convert.hearing import hearing
from yarn_convert.options import ConvertOptions, Recipe
from yarn_convert.targets import parts, resume

REPO, GGUFS = "some-org/tiny", "some-org/tiny-GGUF"


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, folder: Path, **repos: Path) -> Iterator[Hub]:
    """A Hub of some-org's repositories, which the unmodified client asks in this process."""
    hub = Hub({f"some-org/{name.replace('_', '-')}": path for name, path in repos.items()})
    (folder / "headers").mkdir()
    monkeypatch.setattr(source, "_scratch", lambda: folder / "headers")
    monkeypatch.setattr(source, "FIRST_READ", 1 << 12)
    with serving(hub) as endpoint:
        for name, value in (("ENDPOINT", endpoint), ("HF_HUB_CACHE", str(folder / "cache")), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield hub


@pytest.fixture
def hub(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A base in two shards, and its GGUFs: one in parts, one with a tensor of its RoPE; pieces of 10,000 bytes."""
    base, ggufs = make_model(shards=2), tmp_path / "ggufs"
    ggufs.mkdir()
    with monkeypatch.context() as m:
        m.setitem(parts.UNITS, "M", 1000)
        convert(str(base), Recipe(method="none"), out="gguf", output=ggufs / "tiny-F32.gguf", split_max_size="190M")
    second = ggufs / "tiny-F32-00002-of-00003.gguf"
    data = bytearray(second.read_bytes())
    data[data.index(b"split.tensors.count") + 19 + 4] ^= 3  # which nobody reads there: a part is copied as it is
    second.write_bytes(data)
    convert(str(base), Recipe(scale=2), out="gguf", outtype="f16", carry="tensors", output=ggufs / "tiny-F16.gguf")
    monkeypatch.setattr(streaming, "PIECE", 10_000)
    monkeypatch.setattr(parts, "WORTH_KEEPING", 50_000)
    monkeypatch.setattr(hub_client, "PATIENCE", 3.0)
    monkeypatch.setattr(streaming, "PATIENCE", 3.0)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with served(monkeypatch, tmp_path, tiny=base, tiny_GGUF=ggufs) as hub:
        yield hub


def weights_asked(hub: Hub) -> list[Any]:
    return [e for e in hub.log if e.method == "GET" and e.path.endswith((".safetensors", ".gguf"))]


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # (address, how its weight files end, options)
    "as it is": (REPO, ".safetensors", {}),
    "another type": (REPO, ".safetensors", {"outtype": "q8_0"}),
    "in parts": (REPO, ".safetensors", {"outtype": "f16", "split_max_size": "1M"}),
    "several types": (REPO, ".safetensors", {"outtype": "f16,q8_0"}),
    "a GGUF": (f"{GGUFS}:F16", "F16.gguf", {}),
    "a GGUF in parts": (f"{GGUFS}:F32", "-00003.gguf", {}),
}


def weights_in(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".gguf", ".safetensors")}


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_those_of_the_downloaded_model(hub: Hub, tmp_path: Path, case: str) -> None:
    address, ending, options = CASES[case]
    made = convert(address, Recipe(scale=4), out="gguf", stream=True, output=Path("streamed/x.gguf"), **options)
    asked, repo = weights_asked(hub), address.partition(":")[0]
    size = sum(f.size for name, f in hub.repos[repo].at().files.items() if name.endswith(ending))
    headers = 4 * (1 << 12) * len({e.path for e in asked})
    assert all(e.range for e in asked) and size - headers < sum(e.sent for e in asked) < size + headers, "each byte once"
    assert weights_in(tmp_path / "cache") == {}
    there = convert(address, Recipe(scale=4), out="gguf", output=Path("downloaded/x.gguf"), **options)
    ours, theirs = (weights_in(Path(folder)) for folder in ("streamed", "downloaded"))
    assert ours == theirs and len(ours) == {"a GGUF in parts": 3, "several types": 2}.get(case, 1)
    assert made.manifest.base == there.manifest.base and made.manifest.base.commit == hub.repos[repo].at().sha
    asked = weights_asked(hub)
    convert(address, Recipe(scale=4), out="gguf", stream=True, output=Path("cached/x.gguf"), **options)
    assert weights_in(Path("cached")) == ours
    assert sum(e.sent for e in weights_asked(hub)[len(asked) :]) <= headers, "what its cache has comes from there"


def test_a_connection_that_breaks_is_made_again(hub: Hub) -> None:
    hub.faults.append(Fault("GET .*resolve.*safetensors", cut=5000, times=3, skip=6))
    convert(REPO, Recipe(scale=4), out="gguf", stream=True, output=Path("x.gguf"))
    assert hub.faults[0].times == 0
    convert(REPO, Recipe(scale=4), out="gguf", output=Path("y.gguf"))
    assert Path("x.gguf").read_bytes() == Path("y.gguf").read_bytes()


def test_large_files_come_from_where_the_hub_leads(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.leads = True
    conversion = prepare_each(REPO, ConvertOptions(Recipe(scale=4), out="gguf", stream=True, output=Path("x.gguf")))
    before = len(hub.log)

    def later(call: object, what: str, fraction: float, more: str) -> None:  # the first addresses are no longer good
        hub.signed = int(fraction > 0.25)

    with hearing(later):
        run_each(conversion)
    log = hub.log[before:]
    stored, asked = ([e for e in log if start in e.path] for start in ("/store/", "/resolve/"))
    assert len(stored) > 30 and 2 <= len(asked) < len(stored) / 2, "the Hub is asked where, once and again"
    assert {e.token for e in stored} == {""} and {e.token for e in asked} == {"hf_secret"}
    assert any(e.status == 403 for e in stored)
    hub.leads = False
    convert(REPO, Recipe(scale=4), out="gguf", output=Path("y.gguf"))
    assert Path("x.gguf").read_bytes() == Path("y.gguf").read_bytes()


@pytest.mark.parametrize(("address", "good"), [(REPO, 24), (f"{GGUFS}:F16", 14)])
def test_a_hub_that_is_gone_is_one_line_and_the_same_command_goes_on(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, address: str, good: int
) -> None:
    monkeypatch.setattr(resume, "RESUMABLE", 0)
    monkeypatch.setattr(resume, "BATCH", 1)
    for _ in range(2):  # the headers' places are others in each process
        hub.faults = [Fault("GET .*resolve.*(safetensors|gguf)", cut=50, times=10_000, skip=good)]
        with pytest.raises(Unreachable, match="could not get some-org/tiny") as e:
            convert(address, Recipe(scale=4), out="gguf", stream=True, output=Path("x.gguf"))
        assert "goes on where this one stopped" in e.value.hint
        monkeypatch.setattr(source, "_scratch", lambda: Path("other").absolute())
    before, hub.faults, said = len(hub.log), [], list[str]()
    run_each(prepare_each(address, ConvertOptions(Recipe(scale=4), out="gguf", stream=True, output=Path("x.gguf"))), say=said.append)
    assert said and said[0].startswith("going on with")
    sent = sum(e.sent for e in weights_asked(hub) if e in hub.log[before:])
    convert(address, Recipe(scale=4), out="gguf", output=Path("y.gguf"))
    assert Path("x.gguf").read_bytes() == Path("y.gguf").read_bytes()
    assert sent < 0.9 * Path("x.gguf").stat().st_size


def test_ctrl_c_waits_for_no_answer_and_the_same_command_goes_on(hub: Hub) -> None:
    """The Hub has given some pieces when it falls silent; its client would wait for a minute."""
    goes_on = threading.Event()
    hub.faults.append(Fault("GET .*resolve.*safetensors", times=10_000, skip=24, until=goes_on))
    script = (
        "from yarn_convert.checkpoint import source, streaming; from yarn_convert.targets import resume\n"
        "source.FIRST_READ, streaming.PIECE, resume.RESUMABLE, resume.BATCH = 1 << 12, 10_000, 0, 1\n"
        "from yarn_convert.cli import main; main()"
    )
    env = os.environ | {"HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", script, REPO, "--scale", "4", "--out", "gguf", "--stream", "-o", "x.gguf"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        while child.poll() is None and hub.faults[0].times > 9_998:  # two requests wait
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=20)
    finally:
        child.kill()
        goes_on.set()
        hub.faults.clear()
    assert child.returncode == 130 and "delete .x.gguf.partial" in err and "Traceback" not in err, err
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert "going on with .x.gguf.partial" in done.stderr
    convert(REPO, Recipe(scale=4), out="gguf", output=Path("y.gguf"))
    assert Path("x.gguf").read_bytes() == Path("y.gguf").read_bytes()


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_that_becomes_another_is_an_error(hub: Hub, same_size: bool, leads: bool) -> None:
    """No commit changes; but what answers for it is not the Hub's word alone."""
    hub.leads = leads
    conversion = prepare_each(REPO, ConvertOptions(Recipe(scale=4), out="gguf", stream=True, output=Path("x.gguf")))
    files = hub.repos[REPO].at().files
    for name in [name for name in files if name.endswith(".safetensors")]:
        data = bytearray(files[name].data)
        data[-1] ^= 1
        files[name] = File(bytes(data) if same_size else bytes(data) + b"0", True)
        hub.keep(hub.repos[REPO], files[name])
    with pytest.raises(InputError, match="is not what it was") as e:
        run_each(conversion)
    assert not isinstance(e.value, Unreachable) and not list(Path().glob("*x.gguf*")) and not list(Path().glob(".*"))


def test_what_must_be_here_is_said(hub: Hub, tmp_path: Path, make_model: MakeModel) -> None:
    for model, options, says in (
        (str(tmp_path / "tiny"), {"out": "gguf"}, "is on this machine"),
        (REPO, {}, "is for a GGUF"),
        (REPO, {"out": "gguf", "converter": Path("llama.cpp")}, "reads the model's files"),
    ):
        with pytest.raises(UsageError, match=says):
            convert(model, Recipe(scale=4), stream=True, **options)
    files = hub.repos[REPO].at().files
    pickled = {
        name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin"): f for name, f in files.items() if "index" not in name
    }
    hub.repos[REPO].commit("main", "", pickled, "pickles")
    with pytest.raises(InputError, match="pickles"):
        convert(REPO, Recipe(scale=4), out="gguf", stream=True)
