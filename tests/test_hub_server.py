"""The Hub of these tests carries the unmodified huggingface_hub client through what an upload needs."""

from __future__ import annotations

import random
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import SHA, Fault, Hub, serving
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, constants, errors

BIG, OWN = random.Random(0).randbytes(300_000), random.Random(1).randbytes(300_000)
CARD = b"---\nlicense: apache-2.0\nbase_model: some-org/base\ntags:\n- yarn\n- gguf\n---\n# Tiny\n"
SMALL = 20_000  # bytes: what commits and questions take, and no weights

crosses = pytest.mark.skipif("src_repo_id" not in CommitOperationCopy.__dataclass_fields__, reason="the client copies within a repo only")


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """some-org/base holds a large and a regular file, other/base is someone else's."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(BIG)
    (tmp_path / "base" / "config.json").write_bytes(b"{}")
    hub = Hub({"some-org/base": tmp_path / "base", "other/base": tmp_path / "base"})
    hub.threshold = 100_000
    return hub


@pytest.fixture
def api(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    """The client, and the empty repo me/m."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(hub) as endpoint:
        api = HfApi(endpoint=endpoint, token="hf_token")
        api.create_repo("me/m")
        yield api


def add(path: str, data: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, data)


def lines(hub: Hub, *words: str) -> list[str]:
    return [line for line in hub.log if all(w in line for w in words)]


@pytest.mark.parametrize("part", [None, 100_000, 130_000])
def test_a_folder_goes_up_once_and_comes_back(hub: Hub, api: HfApi, tmp_path: Path, part: int | None) -> None:
    hub.part = part or hub.part
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    files = {"README.md": CARD, "config.json": b"{}\n", "sub/table": OWN, "sub/tiny.gguf": b"GGUF", "empty.bin": b""}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    done = api.upload_folder(repo_id="me/m", folder_path=folder, commit_message="Up", commit_description="and away")
    head = hub.repos["me/m"].at()
    assert (done.oid, head.title, head.message) == (head.sha, "Up", "and away")
    assert done.repo_url.repo_id == "me/m"
    assert {f.path: (f.size, f.lfs is not None) for f in api.list_repo_tree("me/m", recursive=True) if hasattr(f, "size")} == {
        p: (f.size, f.lfs) for p, f in head.files.items()
    }
    assert [f.path for f in api.list_repo_tree("me/m", "sub")] == ["sub/table", "sub/tiny.gguf"]
    assert [f.path for f in api.get_paths_info("me/m", ["sub", "README.md", "absent"])] == ["sub", "README.md"]
    assert [p for p, f in head.files.items() if f.lfs] == ["sub/table", "sub/tiny.gguf"]
    cache = tmp_path / "cache"
    copy = Path(api.snapshot_download("me/m", cache_dir=cache))
    assert {n: (copy / n).read_bytes() for n in files} == files
    assert copy.name == head.sha
    assert len(lines(hub, "PUT ")) == {None: 1, 100_000: 3, 130_000: 3}[part] + 1
    assert len(OWN) < hub.received["me/m"] < len(OWN) + SMALL
    before = hub.received["me/m"]
    api.upload_folder(repo_id="me/m", folder_path=folder, commit_message="Again")
    assert hub.repos["me/m"].at() is head, "nothing changed, nothing is committed"
    assert hub.received["me/m"] - before < SMALL


def test_what_a_repo_is(hub: Hub, api: HfApi) -> None:
    assert api.whoami()["name"] == "me"
    api.create_commit("me/m", [add("README.md", CARD), add("a.gguf", b"GGUF")], commit_message="Card")
    info = api.model_info("me/m", files_metadata=True)
    assert info.card_data is not None and info.card_data.to_dict() == {
        "license": "apache-2.0", "base_model": "some-org/base", "tags": ["yarn", "gguf"],
    }  # fmt: skip
    assert info.tags == ["yarn", "gguf", "license:apache-2.0", "base_model:some-org/base"]
    assert {s.rfilename: s.size for s in info.siblings or []} == {p: f.size for p, f in hub.repos["me/m"].at().files.items()}
    assert api.model_info("me/m", expand=["sha"]).siblings is None
    assert [api.file_exists("me/m", p) for p in ("README.md", "absent")] == [True, False]
    assert api.repo_exists("me/absent") is False
    with pytest.raises(errors.RevisionNotFoundError):
        api.model_info("me/m", revision="v2")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.create_commit("me/m", [add("README.md", b"# bare")], commit_message="Bare")


def test_repos_that_exist_are_private_or_gated_or_of_others(hub: Hub, api: HfApi) -> None:
    with pytest.raises(errors.HfHubHTTPError) as exists:
        api.create_repo("me/m")
    assert exists.value.response.status_code == 409
    assert api.create_repo("me/m", exist_ok=True).repo_id == "me/m"
    api.create_repo("some-org/secret", private=True)
    assert api.model_info("some-org/secret").private is True
    with pytest.raises(errors.RepositoryNotFoundError):
        HfApi(endpoint=api.endpoint, token=False).model_info("some-org/secret")
    for call in (lambda: api.create_repo("other/m"), lambda: api.create_commit("other/base", [add("a", b"a")], commit_message="No")):
        with pytest.raises(errors.HfHubHTTPError, match="don't have the rights") as refused:
            call()
        assert refused.value.response.status_code == 403
    hub.repos["other/base"].gated = "manual"
    assert api.model_info("other/base").gated == "manual"
    with pytest.raises(errors.GatedRepoError):
        api.file_exists("other/base", "config.json")


def test_files_are_copied_deleted_and_renamed_without_being_sent(hub: Hub, api: HfApi) -> None:
    api.create_commit("me/m", [add("a.gguf", OWN), add("old/b", b"b")], commit_message="One")
    before, puts = hub.received.total(), len(lines(hub, "PUT "))
    api.create_commit(
        "me/m",
        [
            CommitOperationCopy("a.gguf", "c.gguf"),
            CommitOperationCopy("old/b", "b"),
            CommitOperationDelete("a.gguf"),
            CommitOperationDelete("old/"),
        ],
        commit_message="Two",
    )
    assert {p: f.data for p, f in hub.repos["me/m"].at().files.items() if p != ".gitattributes"} == {"c.gguf": OWN, "b": b"b"}
    assert (hub.received.total() - before < SMALL, len(lines(hub, "PUT "))) == (True, puts)
    with pytest.raises(errors.RemoteEntryNotFoundError, match="doesn't exist"):
        api.create_commit("me/m", [CommitOperationDelete("a.gguf")], commit_message="Gone")


@crosses
def test_files_of_another_repo_are_copied_without_being_sent(hub: Hub, api: HfApi) -> None:
    hub.dedup = False
    copies = [CommitOperationCopy(p, f"from/{p}", "main", "other/base", "model") for p in ("model.safetensors", "config.json")]
    api.create_commit("me/m", copies, commit_message="Copy")
    files = hub.repos["me/m"].at().files
    assert (files["from/model.safetensors"].data, files["from/config.json"].data) == (BIG, b"{}")
    assert len(lines(hub, "/api/models/other/base/lfs-files/duplicate")) == 1
    assert lines(hub, "PUT ") + lines(hub, "resolve", "safetensors") == []
    assert hub.received.total() < SMALL


@crosses
def test_a_copy_that_is_refused_commits_nothing(hub: Hub, api: HfApi) -> None:
    def copy() -> None:
        api.create_commit("me/m", [CommitOperationCopy("model.safetensors", "m", "main", "other/base", "model")], commit_message="Copy")

    head, base = hub.repos["me/m"].at(), hub.repos["other/base"]
    base.region = "eu"
    with pytest.raises(errors.FileDuplicationError, match="storage regions differ"):
        copy()
    base.xet = False
    with pytest.raises(ValueError, match="file has no xet hash"):
        copy()
    base.xet, base.region = True, "us"
    hub.faults.append(Fault("/duplicate$", status=429, headers={"Retry-After": "0"}))
    with pytest.raises(errors.HfHubHTTPError, match="429"):  # this request is not tried again
        copy()
    base.gated = "auto"
    with pytest.raises(errors.GatedRepoError):
        copy()
    assert hub.repos["me/m"].at() is head


def test_what_one_repo_has_is_sent_to_another_only_without_dedup(hub: Hub, api: HfApi) -> None:
    for dedup in (True, False):
        hub.dedup, before = dedup, hub.received["me/m"]
        api.create_commit("me/m", [add("a.gguf", BIG if dedup else BIG[1:])], commit_message="One")
        assert (hub.received["me/m"] - before < SMALL) is dedup
    hub.repos["me/m"].objects.clear()
    with pytest.raises(errors.BadRequestError, match="Offending file: b"):
        api.create_commit("me/m", [CommitOperationCopy("a.gguf", "b.gguf")], commit_message="Lost")


def test_a_pull_request_leaves_main_alone(hub: Hub, api: HfApi) -> None:
    main = hub.repos["me/m"].at()
    done = api.create_commit("me/m", [add("a", b"a")], commit_message="Try", create_pr=True)
    assert (done.pr_num, done.pr_revision) == (1, "refs/pr/1")
    api.create_commit("me/m", [add("b", b"b")], commit_message="More", revision="refs/pr/1")
    assert set(hub.repos["me/m"].at("refs/pr/1").files) == {".gitattributes", "a", "b"}
    assert api.file_exists("me/m", "b", revision="refs/pr/1")
    assert hub.repos["me/m"].at() is main
    api.create_commit("other/base", [add("a", b"a")], commit_message="To others", create_pr=True)
    assert hub.repos["other/base"].at().sha == SHA


def test_a_commit_on_another_parent_is_refused(hub: Hub, api: HfApi) -> None:
    old = hub.repos["me/m"].at().sha
    new = api.create_commit("me/m", [add("a", b"a")], commit_message="One", parent_commit=old).oid
    with pytest.raises(errors.HfHubHTTPError, match="A commit has happened since") as refused:
        api.create_commit("me/m", [add("a", b"b")], commit_message="Two", parent_commit=old)
    assert refused.value.response.status_code == 412
    assert hub.repos["me/m"].at().sha == new


def test_questions_and_bodies_are_tried_again_and_commits_are_not(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    hub.faults = [
        Fault("/preupload/", status=429, headers={"Retry-After": "0"}),
        Fault("PUT ", status=500),
        Fault("PUT ", cut=100_000),
        Fault("/commit/", status=503),
        Fault("/commit/", cut=5),
    ]
    (tmp_path / "a.gguf").write_bytes(OWN)
    operation = CommitOperationAdd("a.gguf", tmp_path / "a.gguf")
    for message in ("Refused", "Answer lost"):
        with pytest.raises(Exception, match="503" if message == "Refused" else "peer closed|incomplete"):
            api.create_commit("me/m", [operation], commit_message=message)
    assert [(e.status, e.received) for e in hub.log if e.method == "PUT"] == [(0, 100_000), (500, 300_000), (200, 300_000)]
    assert hub.repos["me/m"].at().title == "Answer lost", "it was committed all the same"
    assert not any(f.times for f in hub.faults)


def test_a_download_that_breaks_goes_on_by_range(hub: Hub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # what arrived of an unfinished chunk is fetched again
    hub.cut = 100_000
    path = api.hf_hub_download("some-org/base", "model.safetensors", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == BIG
    assert [e.range for e in hub.log if e.method == "GET"] == ["", "bytes=100000-"]
    assert (hub.cut, hub.sent["some-org/base"]) == (None, len(BIG))
    for given, expected in {"bytes=8-15": BIG[8:16], "bytes=-8": BIG[-8:]}.items():
        request = urllib.request.Request(f"{api.endpoint}/some-org/base/resolve/main/model.safetensors", headers={"Range": given})
        with urllib.request.urlopen(request) as response:
            assert (response.status, response.read()) == (206, expected)
