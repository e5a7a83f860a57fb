"""Models on the Hub, with the unmodified huggingface_hub client in a process of its own and a server on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import CONTEXT, MakeModel
from hub_server import SHA, Fault, File, Hub, serving
from safetensors.numpy import load_file

from yarn_convert.checkpoint.hub_client import patient

INDEX = "model.safetensors.index.json"
TOKEN = "hf_averysecrettokenthatmustnotappear"


class Client:
    def __init__(self, hub: Hub, endpoint: str, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "yarn_convert", *arguments], capture_output=True, text=True, cwd=self.folder, env=self.env, check=False
        )
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def client(make_model: MakeModel, tmp_path: Path) -> Iterator[Client]:
    model = make_model(shards=2)
    (model / "original").mkdir()
    (model / "original" / "consolidated.00.pth").write_bytes(b"not wanted")
    (model / "consolidated.safetensors").write_bytes(b"not wanted")
    hub = Hub({"some-org/tiny": model})
    with serving(hub) as endpoint:
        (tmp_path / "work").mkdir()
        yield Client(hub, endpoint, tmp_path / "work")


def test_a_hub_model_is_downloaded_converted_and_pinned(client: Client, tmp_path: Path) -> None:
    done = client.run("some-org/tiny", "--scale", "4", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    manifest = json.loads(done.stdout)
    assert manifest["output"] == "tiny-yarn-256"
    assert (manifest["base"]["repo"], manifest["base"]["commit"]) == ("some-org/tiny", SHA)
    assert [set(f) for f in manifest["weights"]["files"]] == [{"file", "bytes", "how", "sha256_of_hub"}] * 2, "nothing was hashed here"
    for shard in tmp_path.glob("tiny/*-of-*.safetensors"):
        assert (client.folder / "tiny-yarn-256" / INDEX).read_bytes() == (tmp_path / "tiny" / INDEX).read_bytes()
        ours, theirs = load_file(client.folder / "tiny-yarn-256" / shard.name), load_file(shard)
        assert ours.keys() == theirs.keys()
    assert not any("consolidated" in line and "resolve" in line for line in client.hub.log)
    requests = len(client.hub.log)
    assert client.run("some-org/tiny", "--scale", "4", "--out", "gguf").returncode == 0
    assert not any(line.startswith("GET") and "safetensors" in line and "resolve" in line for line in client.hub.log[requests:]), (
        "nothing is downloaded twice"
    )


def test_a_dry_run_reads_headers_by_range(client: Client) -> None:
    done = client.run("some-org/tiny", "--scale", "4", "--dry-run", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["context"] == 4 * CONTEXT
    done = client.run("inspect", "some-org/tiny")
    assert (done.returncode, done.stderr) == (0, "headers of some-org/tiny\n")
    bodies = [line for line in client.hub.log if line.startswith("GET") and ".safetensors" in line and "index" not in line]
    assert bodies
    assert all("bytes=" in line for line in bodies), "only ranges of the shards are read"


def test_a_connection_cut_in_a_shard_is_resumed(client: Client) -> None:
    client.hub.cut = 5000
    done = client.run("some-org/tiny", "--scale", "4", "-q")
    if done.returncode:  # the client gave up: the same command goes on from there
        done = client.run("some-org/tiny", "--scale", "4", "-q")
    assert done.returncode == 0, done.stderr
    assert client.hub.cut is None


@pytest.mark.parametrize(
    ("model", "says", "hint"), [("some-org/absent", "does not exist", "spelling"), ("some-org/tiny", "gated", "licence")]
)
def test_what_is_absent_or_gated_is_one_line(client: Client, model: str, says: str, hint: str) -> None:
    client.hub.gated = says == "gated"
    done = client.run(model, "--scale", "4")
    assert done.returncode == 1
    error, line = done.stderr.splitlines()
    assert says in error
    assert hint in line
    assert list(client.folder.glob("*yarn*")) == []


@pytest.mark.parametrize(
    ("env", "hint"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the network and try again"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set: unset it and try again"),
        ({"TRANSFORMERS_OFFLINE": "1"}, "TRANSFORMERS_OFFLINE is set: unset it and try again"),
    ],
)
def test_a_hub_that_is_not_reached_is_one_line(client: Client, env: dict[str, str], hint: str) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        client.env.pop(name, None)
    client.env |= env
    assert client.run("../tiny", "--scale", "4", "-o", "out", "-q").returncode == 0
    for words in (
        ("some-org/tiny", "--scale", "4"),
        ("inspect", "some-org/tiny"),
        ("upload", "out", "me/tiny", "--allow-unvalidated"),
    ):
        done = client.run(*words)
        error, line = done.stderr.splitlines()
        assert (done.returncode, error.startswith(("error: could not ", "error: some-org/tiny is not whole"))) == (1, True), done.stderr
        assert line.startswith(f"hint: {hint}")


@pytest.mark.parametrize("env", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_without_a_network_the_cache_serves(client: Client, env: dict[str, str]) -> None:
    assert client.run("some-org/tiny", "--scale", "4", "-q").returncode == 0
    client.env |= env
    done = client.run("some-org/tiny", "--scale", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["base"]["commit"] == SHA


def test_the_twin_of_a_hub_model_needs_no_weights(client: Client) -> None:
    pytest.importorskip("accelerate")
    done = client.run("validate", "some-org/tiny", "--twin", "--runtime", "transformers", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["verdict"], [s["kind"] for s in result["studies"]]) == ("passed", ["twin"])
    bodies = [line for line in client.hub.log if line.startswith("GET") and ".safetensors" in line and "index" not in line]
    assert all("bytes=" in line for line in bodies), "headers are read by range, and nothing else of a weight file"


def test_code_and_templates_of_a_model_come_along(client: Client) -> None:
    """Only what belongs to the model is asked for; what a module imports or names is known when it is here."""
    repo = client.hub.repos["some-org/tiny"]
    config = json.loads(repo.at().files["config.json"].data) | {"auto_map": {"AutoConfig": "odd.Odd"}}
    more = {
        "config.json": json.dumps(config), "odd.py": 'from .more import x\nDATA = "odd.vocab"\n', "more.py": "raise SystemExit('it ran')",
        "odd.vocab": "a b", "additional_chat_templates/tool.jinja": "{{ tools }}", "stray.py": "", "notes.txt": "n", "x/config.json": "{}",
        "qwen.tiktoken": "IQ== 0", "optimizer.pt": "o", "training.json": "{}",
    }  # fmt: skip
    repo.at().files.update({name: File(text.encode(), name.endswith(".pt")) for name, text in more.items()})
    done = client.run("some-org/tiny", "--scale", "4", "-o", "out", "-q")
    assert done.returncode == 0, done.stderr
    brought = {"odd.py", "more.py", "odd.vocab", "qwen.tiktoken", "additional_chat_templates/tool.jinja"}
    assert {n for n in more if (client.folder / "out" / n).exists()} == brought | {"config.json"}
    asked = {entry.path.partition("/resolve/")[2].partition("/")[2] for entry in client.hub.log if "/resolve/" in entry.path}
    assert asked & set(more) == brought | {"config.json"}


def test_a_hash_in_the_manifest_is_of_the_bytes_that_were_written(client: Client) -> None:
    done = client.run("some-org/tiny", "--scale", "4", "--hash", "-o", "out", "--json")
    assert done.returncode == 0, done.stderr
    for entry in json.loads(done.stdout)["weights"]["files"]:
        assert entry["sha256"] == hashlib.sha256((client.folder / "out" / entry["file"]).read_bytes()).hexdigest() == entry["sha256_of_hub"]
    name = entry["file"]
    blob = next((client.folder / "cache").glob(f"hub/models--*/snapshots/*/{name}")).resolve()
    data = bytearray(blob.read_bytes())
    data[-3] ^= 4
    blob.write_bytes(bytes(data))
    assert client.run("some-org/tiny", "--scale", "4", "-o", "flipped", "-q").returncode == 0
    entry = next(
        f for f in json.loads((client.folder / "flipped" / "yarn_convert.json").read_text())["weights"]["files"] if f["file"] == name
    )
    assert "sha256" not in entry, "nobody here has looked"
    done = client.run("some-org/tiny", "--scale", "4", "--hash", "-o", "hashed", "-q")
    assert done.returncode == 1 and f"{name} in the Hub's cache is not what the Hub has" in done.stderr
    assert not (client.folder / "hashed").exists()


@pytest.mark.parametrize(
    ("where", "status"),
    [("GET /api/models/some-org/tiny", 429), ("(GET|HEAD) .*/resolve/.*config.json", 500), ("(GET|HEAD) .*/resolve/.*safetensors", 503)],
)
def test_a_busy_hub_is_asked_again(client: Client, where: str, status: int) -> None:
    client.hub.faults = [Fault(where, status=status, headers={"Retry-After": "1"} if status == 429 else {}, times=2)]
    listed = where.startswith("GET /api")
    done = client.run("some-org/tiny", "--scale", "4", "-o", "out", *([] if listed else ["-q"]))
    assert done.returncode == 0, done.stderr
    assert not any(f.times for f in client.hub.faults)
    if listed:
        assert f"the Hub answers {status}: asked again in 1 s" in done.stderr


def test_a_busy_hub_is_not_asked_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)

    class Busy(Exception):
        response = SimpleNamespace(status_code=429, headers={"Retry-After": "0"})

    def busy() -> None:
        if len(waits) < 3:
            raise Busy

    patient(busy)
    assert waits == [1, 1, 1]


def test_an_older_commit_of_the_cache_is_not_taken_for_the_newest(client: Client) -> None:
    """So does the client while the Hub is busy."""
    assert client.run("some-org/tiny", "--scale", "4", "-o", "old", "-q").returncode == 0
    repo = client.hub.repos["some-org/tiny"]
    repo.commit("main", SHA, dict(repo.at().files) | {"chat_template.jinja": File(b"{{ new }}", False)}, "a template")
    client.hub.faults = [Fault("GET /api/models/some-org/tiny/revision/main", status=500, times=99)]
    done = client.run("some-org/tiny", "--scale", "4", "-o", "new", "-q")
    assert done.returncode == 1 and "could not get some-org/tiny from the Hub as it is now" in done.stderr
    assert not (client.folder / "new").exists()


def test_a_hub_that_stays_busy_is_given_up_in_a_line(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.hub.faults = [Fault("GET /api/models", status=429, headers={"Retry-After": "600"}, times=99)]
    began = time.monotonic()
    done = client.run("some-org/tiny", "--scale", "4")
    assert (done.returncode, time.monotonic() - began < 30) == (1, True), "ten minutes are longer than anyone waits"
    assert done.stderr.splitlines()[0] == "error: could not get some-org/tiny from the Hub: it answers 429"


@pytest.mark.parametrize("model", ["me/a--b", "me/a..b", "me/ab.git", "me/.", "me/-a"])
def test_what_the_hub_takes_for_no_name_is_none(client: Client, model: str) -> None:
    done = client.run(model, "--scale", "4")
    assert done.returncode == 1 and "network" not in done.stderr
    assert f"no model {model!r}" in done.stderr
    assert client.hub.log == []


def test_what_an_output_says_of_itself_is_downloaded_with_it(client: Client, tmp_path: Path) -> None:
    assert client.run("some-org/tiny", "--scale", "4", "--method", "ntk-aware", "-o", "out", "-q").returncode == 0
    made = Hub({"some-org/long": client.folder / "out"})
    client.hub.repos |= made.repos
    client.hub.blobs |= made.blobs
    done = client.run("inspect", "some-org/long", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rope"]["method"] == "ntk-aware", "which config.json cannot say"
