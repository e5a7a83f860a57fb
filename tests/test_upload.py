"""Publishing: the card says what is so, and the unmodified huggingface_hub client moves the files to a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from conftest import CONTEXT, MakeModel
from hub_server import SHA, Fault, Hub, serving
from huggingface_hub import CommitOperationCopy, HfApi, ModelCard, ModelCardData, constants
from huggingface_hub.utils import enable_progress_bars
from safetensors.numpy import load_file, save_file

from yarn_convert import upload
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.manifest import manifest_path
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.conversion import convert
from yarn_convert.errors import FormatError, InputError, OutputError, UsageError
from yarn_convert.formats import digests as digests_module
from yarn_convert.formats.digests import digests
from yarn_convert.formats.tensors import read_folder
from yarn_convert.options import ConvertOptions, Recipe, UploadOptions
from yarn_convert.publishing import card, plan_upload, push, run_upload
from yarn_convert.publishing.model_card import BEGIN, END

TOKEN = "hf_averysecrettokenthatmustnotappear"
BASE_CARD = "---\nlicense: apache-2.0\nlanguage:\n- en\ntags:\n- tiny\n---\n# Tiny\n\nThe base's own words.\n"
PASSED = {
    "verdict": "passed",
    "created": "2026-01-02T03:04:05+00:00",
    "studies": [
        {
            "kind": "real",
            "tokens": 256,
            "runtimes": [
                {"runtime": "llama.cpp", "version": "1.2.3", "verdict": "passed", "why": "", "windows": [{"nmse": 2.5e-9, "top1": 1.0}]}
            ],
        }
    ],
}

crosses = pytest.mark.skipif("src_repo_id" not in CommitOperationCopy.__dataclass_fields__, reason="the client copies within a repo only")


def recorded(out: Path, **changes: Any) -> Path:
    """The output, with its manifest changed; by default it has passed its validation, as it is now."""
    path = manifest_path(out)
    manifest = {**json.loads(path.read_text()), "validation": PASSED, **changes}
    if manifest["validation"]:
        files = msgspec.to_builtins(digests(open_checkpoint(resolve(str(out))).files))
        about = {"intention": {k: manifest[k] for k in ("recipe", "context")}, "files": files}
        manifest["validation"] = about | manifest["validation"]
    path.write_text(json.dumps(manifest))
    return out


@pytest.fixture
def base(make_model: MakeModel) -> Path:
    """A base with a card and weights that the Hub keeps as large files."""
    model = make_model(name="base", shards=2)
    (model / "README.md").write_text(BASE_CARD)
    return model


@pytest.fixture
def hub(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub({"some-org/base": base})
    hub.threshold, hub.dedup = 50_000, False
    for name, value in (("HF_HUB_DISABLE_XET", True), ("HF_HUB_OFFLINE", False)):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(hub) as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield hub


@pytest.fixture
def out(base: Path, hub: Hub, tmp_path: Path) -> Path:
    """The base extended four times; its weights are some-org/base's."""
    out = tmp_path / "out"
    manifest = convert(str(base), Recipe(scale=4.0), output=out).to_dict()
    return recorded(out, base={**manifest["base"], "repo": "some-org/base", "commit": SHA})


def metadata(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


# -- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_of_an_extended_folder(out: Path) -> None:
    text = card(str(out), "me/long")
    assert metadata(text) == {
        "license": "apache-2.0",
        "language": ["en"],
        "tags": ["tiny", "yarn", "long-context"],
        "base_model": "some-org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    ModelCardData(**metadata(text))
    assert f"[some-org/base](/some-org/base) at `{SHA[:12]}`, its context extended from 64 to **256 tokens** (4 times) with `yarn`." in text
    assert "not fine-tuned" in text and "byte for byte the base's" in text
    assert "| llama.cpp 1.2.3 | the weights | 256 | 2.5e-09 | 100.00 % | passed |" in text
    assert "vllm serve me/long --max-model-len 256" in text
    assert "| 256 | 0.00 GiB |" in text
    assert "unknown: it was not measured" in text
    assert text.rstrip().endswith("The base's own words."), "prose that is there stays"


def test_the_card_of_a_quantized_gguf(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    convert(str(base), Recipe(scale=4.0), out="gguf", outtype="q8_0", output=out)
    recorded(out, base={"name": "base", "repo": "some-org/base", "commit": None, "format": "safetensors"}, validation=None)
    text = card(str(out), "me/long-gguf")
    assert (metadata(text)["base_model_relation"], metadata(text)["library_name"]) == ("quantized", "gguf")
    assert "in another type" in text and "**Not validated**" in text
    assert "llama-cli -m m.gguf -c 256" in text and "PARAMETER num_ctx 256" in text


def test_the_card_of_someone_elses_model_claims_nothing(make_model: MakeModel) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
    text = card(str(make_model(config={"rope_scaling": scaling, "max_position_embeddings": 4 * CONTEXT})))
    assert "byte for byte" not in text and "not fine-tuned" not in text and "**Not validated**" in text
    assert "base_model" not in metadata(text)


def test_the_card_of_what_was_not_extended_says_so(make_model: MakeModel, tmp_path: Path) -> None:
    base, out = make_model(), tmp_path / "m.gguf"
    convert(str(base), Recipe(method="none"), out="gguf", output=out)
    for model, tags in ((out, ["gguf"]), (base, [])):
        text = card(str(model))
        assert metadata(text)["tags"] == tags
        assert "extended" not in text and "not fine-tuned" not in text and "static scaling" not in text
        assert "its context of **64 tokens** and its RoPE as they are" in text
    assert "## Made with" not in text, "the base was made by someone else"


def test_our_section_is_replaced_and_nothing_else(out: Path) -> None:
    readme = out / "README.md"
    readme.write_text(card(str(out), "me/a").replace("The base's own words.", "My words."))
    again = card(str(out), "me/b")
    assert again.count(BEGIN) == again.count(END) == 1
    assert "me/a" not in again and "me/b" in again and "My words." in again
    readme.write_text(f"Before.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    text = ModelCard(card(str(out))).text
    assert text.strip().startswith("Before.") and text.strip().endswith("After.") and "\nold\n" not in text


def test_each_gguf_of_a_repository_has_its_own_section(base: Path, tmp_path: Path) -> None:
    """One quantization after the other is uploaded to one repository: none takes the other's place in the card."""
    text = "---\nlicense: mit\n---\nWhat I wrote.\n"
    outs = [tmp_path / f"m-{outtype}.gguf" for outtype in ("f16", "q8_0")]
    for out in (*outs, outs[0]):
        if not out.exists():
            convert(str(base), Recipe(scale=4.0), out="gguf", outtype=out.stem[2:], output=out)
        text = card(str(out), "me/long", text)
    for out in outs:
        assert text.count(f"llama-cli -m {out.name}") == 1
    assert text.count("# long\n") == 1 and text.count("# m-q8_0\n") == 1 and "# m-f16\n" not in text
    assert text.count("What I wrote.") == 1
    convert(str(base), Recipe(scale=4.0), output=tmp_path / "m-2.5b")
    both = card(str(tmp_path / "m-2.5b"), "me/long", text)
    assert all(both.count(f"llama-cli -m {out.name}") == 1 for out in outs) and "vllm serve me/long" in both
    old = f"{BEGIN}\nllama-cli -m {outs[1].name} -c 1\n{END}\n\nMine."  # as 0.1.0 wrote it
    new = card(str(outs[1]), "me/long", old)
    assert "-c 1\n" not in new and new.count(f"llama-cli -m {outs[1].name}") == 1 and "Mine." in new
    assert "-c 1\n" in card(str(outs[0]), "me/long", old)


def test_a_short_twin_is_not_called_the_whole_window(out: Path) -> None:
    for tokens, whole in ((4 * CONTEXT, True), (4 * CONTEXT - 1, False)):
        studies = [{**PASSED["studies"][0], "kind": "twin", "tokens": tokens}]
        recorded(out, validation={**PASSED, "studies": studies})
        assert ("random weights, the whole window" in card(str(out))) is whole


def test_a_card_or_manifest_that_cannot_be_read_is_one_error(out: Path) -> None:
    (out / "README.md").write_text("---\nlicense: [\n---\nx\n")
    with pytest.raises(FormatError, match="not valid YAML"):
        card(str(out))
    (out / "README.md").unlink()
    recorded(out, readers=7)
    with pytest.raises(FormatError, match="readers is 7, not an object"):
        card(str(out))


GOLDEN = Path(__file__).parent / "data"


@pytest.mark.parametrize("case", ["folder", "gguf", "foreign"])
def test_the_card_is_the_golden_one(base: Path, hub: Hub, make_model: MakeModel, tmp_path: Path, case: str) -> None:
    """Each was read by a person. To renew one: write what `card` gives over it, and read it."""
    made = {"created": "2026-01-02T03:04:05+00:00", "yarn_convert": "0.1.0"}
    if case == "foreign":
        scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
        model = make_model(config={"rope_scaling": scaling, "max_position_embeddings": 4 * CONTEXT})
    elif case == "gguf":
        model = tmp_path / "m.gguf"
        convert(str(base), Recipe(scale=4.0, attention_factor=1.5), out="gguf", outtype="q8_0", output=model)
        recorded(model, base={"name": "base", "repo": "some-org/base", "commit": None, "format": "safetensors"}, validation=None, **made)
    else:
        model = tmp_path / "out"
        convert(str(base), Recipe(scale=4.0), output=model)
        recorded(model, base={"name": "base", "repo": "some-org/base", "commit": SHA, "format": "safetensors"}, **made)
    text = card(str(model), "me/long")
    assert text == (GOLDEN / f"card_{case}.md").read_text("utf-8")
    ModelCard(text).validate()  # the client's own check, by its Hub


# -- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def seeing(base: Path, tmp_path: Path) -> Path:
    """A GGUF whose manifest says that llama.cpp's converter made a file of what sees beside it."""
    out, mmproj = tmp_path / "m.gguf", tmp_path / "mmproj-m.gguf"
    convert(str(base), Recipe(scale=4.0), out="gguf", output=out)
    mmproj.write_bytes(b"GGUF" + bytes(60_000))
    digest = hashlib.sha256(mmproj.read_bytes()).hexdigest()
    record = {"file": mmproj.name, "bytes": mmproj.stat().st_size, "how": "llama.cpp's converter", "sha256": digest}
    return recorded(out, mmproj=record)


def test_the_file_of_what_sees_goes_with_its_gguf_and_the_card_names_both(seeing: Path, hub: Hub) -> None:
    plan = plan_upload(str(seeing), UploadOptions("me/sees"))
    assert {i.name for i in plan.items} == {"README.md", "m.gguf", "m.yarn_convert.json", "mmproj-m.gguf"}
    assert f"llama-server -m m.gguf --mmproj mmproj-m.gguf -c {4 * CONTEXT}" in plan.card
    run_upload(plan)
    there = hub.repos["me/sees"].at().files
    assert there["mmproj-m.gguf"].data == seeing.with_name("mmproj-m.gguf").read_bytes()
    assert b"--mmproj mmproj-m.gguf" in there["README.md"].data
    assert {i.way for i in plan_upload(str(seeing), UploadOptions("me/sees")).items if i.name.endswith(".gguf")} == {"unchanged"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda out: flip(out.with_name("mmproj-m.gguf")),
            r"mmproj-m\.gguf is not the file that was made with m\.gguf: its SHA-256 differs",
        ),
        (lambda out: out.with_name("mmproj-m.gguf").unlink(), r"mmproj-m\.gguf"),
        (lambda out: edit_manifest(out, mmproj={"file": "id_rsa"}), "no GGUF file"),
        (lambda out: edit_manifest(out, mmproj={"file": "../x.gguf"}), "leads out of the model's folder"),
    ],
)
def test_another_file_of_what_sees_is_not_published(seeing: Path, hub: Hub, change: Any, says: str) -> None:
    change(seeing)
    with pytest.raises((InputError, FormatError), match=says):
        plan_upload(str(seeing), UploadOptions("me/sees"))


@crosses
def test_weights_that_the_base_has_are_copied_on_the_server(out: Path, hub: Hub) -> None:
    plan = plan_upload(str(out), UploadOptions("me/long"))
    ways = {i.name: i.way for i in plan.items}
    assert {n for n, way in ways.items() if way == "copy"} == {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert "commit" in run_upload(plan)
    head = hub.repos["me/long"].at()
    assert set(head.files) - {".gitattributes"} == set(ways)
    assert {n: head.files[n].data for n in ways if n.endswith(".safetensors")} == {
        n: (out / n).read_bytes() for n in ways if n.endswith(".safetensors")
    }
    assert len(hub.repos["me/long"].commits) <= 2, "one commit beside the one that makes the repository"
    assert hub.received.total() < 100_000 < plan.bytes("copy"), "no weight was sent"
    again = plan_upload(str(out), UploadOptions("me/long"))
    assert {i.way for i in again.items if i.name != "README.md"} == {"unchanged"}


@crosses
@pytest.mark.parametrize("refusal", ["region", "xet", "status"])
def test_where_the_server_refuses_to_copy_the_files_are_uploaded(out: Path, hub: Hub, refusal: str) -> None:
    if refusal == "region":
        hub.repos["some-org/base"].region = "eu"
    elif refusal == "xet":
        hub.repos["some-org/base"].xet = False
    else:
        hub.faults.append(Fault("/duplicate$", status=501))
    said: list[str] = []
    run_upload(plan_upload(str(out), UploadOptions("me/long")), said.append)
    assert "does not copy the weights of some-org/base: " in said[0]
    head = hub.repos["me/long"].at()
    for path in out.glob("*.safetensors"):
        assert head.files[path.name].data == path.read_bytes()


def test_changed_weights_are_uploaded_and_nothing_is_sent_twice(out: Path, hub: Hub) -> None:
    path = next(out.glob("*.safetensors"))
    save_file({k: v + 1 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    recorded(out)
    plan = plan_upload(str(out), UploadOptions("me/long"))
    assert next(i.way for i in plan.items if i.name == path.name) == "upload"
    hub.faults.append(Fault("POST .*/commit/", status=403))
    with pytest.raises(OutputError, match="does not let you write"):
        run_upload(plan)
    sent = sum(e.received for e in hub.log if e.method == "PUT")
    assert sent >= path.stat().st_size
    run_upload(plan_upload(str(out), UploadOptions("me/long")))
    assert sum(e.received for e in hub.log if e.method == "PUT") == sent, "the second run sends no weight again"
    assert hub.repos["me/long"].at().files[path.name].data == path.read_bytes()


def test_what_was_changed_after_it_passed_is_not_published(out: Path, hub: Hub) -> None:
    """The record is of the file as it was; a scaling that is lost since then is seen in the file itself."""
    path = out / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("rope_scaling", "rope_parameters")}
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match="changed since it passed"):
        plan_upload(str(out), UploadOptions("me/long"))
    assert plan_upload(str(out), UploadOptions("me/long", allow_unvalidated=True)).items


def test_what_passed_with_unchecked_weights_is_published_as_that(out: Path, hub: Hub) -> None:
    sure = plan_upload(str(out), UploadOptions("me/long"))
    recorded(out, validation={**PASSED, "weights": {"verdict": "unchecked"}, "tokenizer": {"verdict": "passed"}})
    plan = plan_upload(str(out), UploadOptions("me/long"))
    assert "**passed**, weights unchecked." in plan.card and "**passed**." in sure.card
    assert [w for w in plan.warnings if "weights unchecked" in w and "--base" in w]
    assert not [w for w in sure.warnings if "unchecked" in w]


def flip(path: Path) -> None:
    """One bit of the file's end, under its old time."""
    data, times = bytearray(path.read_bytes()), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=times)


def edit_manifest(out: Path, **changes: Any) -> None:
    path = manifest_path(out)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda out: flip(next(out.glob("*-00002-*.safetensors"))), r"00002-of-00002\.safetensors has another content"),
        (lambda out: (out / "tokenizer_config.json").unlink(), r"tokenizer_config\.json is gone"),
        (lambda out: (out / "chat_template.jinja").write_text("{{ x }}"), r"chat_template\.jinja is new"),
        (lambda out: (out / "generation_config.json").write_text('{"eos_token_id": 7}'), r"generation_config\.json is new"),
        (lambda out: (out / "config.json").write_text((out / "config.json").read_text() + " "), r"config\.json has another size"),
        (lambda out: edit_manifest(out, context=8 * CONTEXT), "the manifest has another recipe or context"),
        (lambda out: edit_manifest(out, validation=PASSED), "does not say of which files"),
    ],
)
def test_what_passed_is_published_as_it_was_and_no_other(out: Path, hub: Hub, change: Any, says: str) -> None:
    recorded(out)
    assert plan_upload(str(out), UploadOptions("me/long")).items
    change(out)
    with pytest.raises(UsageError, match=says):
        plan_upload(str(out), UploadOptions("me/long"))


@pytest.mark.parametrize("when", ["GET", "POST .*/create"])
@pytest.mark.parametrize("change", [lambda p: flip(p), lambda p: p.unlink(), lambda p: p.write_text("{}")])
def test_what_changes_between_the_plan_and_the_commit_is_not_published(out: Path, hub: Hub, when: str, change: Any) -> None:
    plan = plan_upload(str(out), UploadOptions("me/long"))
    said: list[str] = []
    if when == "GET":
        change(out / "tokenizer.json")
    else:  # while the Hub lets us wait
        hub.faults = [Fault(when, status=429, headers={"Retry-After": "1"})]
    with pytest.raises(InputError, match=r"tokenizer\.json was changed"):
        run_upload(plan, lambda line: (said.append(line), change(out / "tokenizer.json")))
    assert "me/long" not in hub.repos or "tokenizer.json" not in hub.repos["me/long"].at().files


def test_a_gguf_is_known_by_its_digest_too(base: Path, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    convert(str(base), Recipe(scale=4.0), out="gguf", output=out)
    recorded(out)
    assert plan_upload(str(out), UploadOptions("me/long")).items
    flip(out)
    with pytest.raises(UsageError, match=r"m\.gguf has another content"):
        plan_upload(str(out), UploadOptions("me/long"))


def test_the_digest_is_of_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests_module, "LEAF", 10)
    (tmp_path / "f").write_bytes(bytes(range(25)))
    pieces = [bytes(range(0, 10)), bytes(range(10, 20)), bytes(range(20, 25))]
    expected = hashlib.sha256(b"".join(hashlib.sha256(p).digest() for p in pieces)).hexdigest()
    assert digests_module.digest(tmp_path / "f") == digests_module.Digest(25, expected)
    (tmp_path / "empty").write_bytes(b"")
    assert digests_module.digest(tmp_path / "empty") == digests_module.Digest(0, hashlib.sha256(b"").hexdigest())


def test_what_did_not_pass_is_not_published(out: Path, hub: Hub) -> None:
    for validation, says in ((None, "never validated"), ({**PASSED, "verdict": "failed"}, "not passed")):
        recorded(out, validation=validation)
        with pytest.raises(UsageError, match=says):
            plan_upload(str(out), UploadOptions("me/long"))
    assert plan_upload(str(out), UploadOptions("me/long", allow_unvalidated=True)).items
    assert "me/long" not in hub.repos
    manifest_path(out).unlink()
    with pytest.raises(UsageError, match="no manifest"):
        plan_upload(str(out), UploadOptions("me/long", allow_unvalidated=True))


def test_license_and_language_come_from_the_bases_card(base: Path, hub: Hub, tmp_path: Path) -> None:
    """A GGUF has no README beside it to take them from."""
    out = tmp_path / "m.gguf"
    manifest = convert(str(base), Recipe(scale=4.0), out="gguf", output=out).to_dict()
    recorded(out, base={**manifest["base"], "repo": "some-org/base", "commit": SHA})
    found = metadata(plan_upload(str(out), UploadOptions("me/long")).card)
    assert (found["license"], found["language"]) == ("apache-2.0", ["en"])


def test_a_link_out_of_the_folder_is_never_published(out: Path, hub: Hub, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    for name in ("NOTICE", "model-00001-of-00002.safetensors", "yarn_convert.json", "additional_chat_templates"):
        kept = out / name
        if kept.exists():
            kept.rename(tmp_path / "kept")
        kept.symlink_to(tmp_path / "kept" if (tmp_path / "kept").exists() else secret)
        with pytest.raises(InputError, match="leads out"):
            plan_upload(str(out), UploadOptions("me/long"))
        kept.unlink()
        if (tmp_path / "kept").exists():
            (tmp_path / "kept").rename(kept)
    (out / "notes.txt").symlink_to(secret)
    (out / ".env").write_text("HF_TOKEN=x")
    (out / "additional_chat_templates").mkdir()
    (out / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    recorded(out)
    names = {i.name for i in plan_upload(str(out), UploadOptions("me/long")).items}
    assert "additional_chat_templates/tool.jinja" in names and not any(n.startswith(".") for n in names)
    assert "notes.txt" not in names


def test_hashing_says_how_far_it_is(out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from yarn_convert.publishing import hub as module

    monkeypatch.setattr(module, "LONG", 100_000)
    said: list[str] = []
    plan_upload(str(out), UploadOptions("me/long"), say=said.append)
    assert said[-1] == "model-00002-of-00002.safetensors: compared with the Hub's by its SHA-256, 100%"


@pytest.mark.parametrize("repo", ["me/a--b", "me/a..b", "me/ab.git", "me", "me/a/b", "me/-a"])
def test_what_the_hub_takes_for_no_name_is_none(out: Path, hub: Hub, repo: str) -> None:
    with pytest.raises(UsageError, match="no name of a repository"):
        plan_upload(str(out), UploadOptions(repo))
    assert hub.log == []


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("where", ["paths-info", "GET .*/api/models/some-org/base", "POST .*/api/repos/create", "/preupload/", "/commit/"])
def test_a_busy_hub_is_asked_again(out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, where: str, status: int) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    said: list[str] = []
    hub.faults = [Fault(where, status=status, headers={"Retry-After": "3"} if status == 429 else {}, times=2)]
    run_upload(plan_upload(str(out), UploadOptions("me/long")), said.append)
    assert not any(f.times for f in hub.faults)
    assert set(hub.repos["me/long"].at().files) >= {"config.json", "yarn_convert.json"}
    if where in ("/commit/", "POST .*/api/repos/create"):
        assert said == [f"the Hub answers {status}: asked again in {s} s" for s in ((3, 3) if status == 429 else (1, 2))]
    assert len(hub.repos["me/long"].commits) <= 2


def test_a_pull_request_is_not_opened_twice(out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    run_upload(plan_upload(str(out), UploadOptions("me/long")))
    (out / "NOTICE").write_text("new")
    hub.faults = [Fault("/commit/", status=500)]
    with pytest.raises(OutputError, match="the Hub refuses me/long: 500"):
        run_upload(plan_upload(str(out), UploadOptions("me/long", create_pr=True)))


def test_a_gated_base_is_warned_of_before_anything_leaves(out: Path, hub: Hub) -> None:
    hub.repos["some-org/base"].gated = True
    assert any("gated" in w for w in plan_upload(str(out), UploadOptions("me/long")).warnings)


def test_a_pull_request_and_a_private_repository(out: Path, hub: Hub) -> None:
    run_upload(plan_upload(str(out), UploadOptions("me/long", private=True)))
    assert hub.repos["me/long"].private
    (out / "NOTICE").write_text("new")
    before = hub.repos["me/long"].at().sha
    url = run_upload(plan_upload(str(out), UploadOptions("me/long", create_pr=True)))
    assert url.endswith("/discussions/1")
    assert hub.repos["me/long"].at().sha == before


def test_prose_on_the_hub_is_kept(out: Path, hub: Hub) -> None:
    run_upload(plan_upload(str(out), UploadOptions("me/long")))
    edited = plan_upload(str(out), UploadOptions("me/long")).card.replace("The base's own words.", "Written on the Hub.")
    HfApi(endpoint=constants.ENDPOINT).upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id="me/long")
    recorded(out, validation={**PASSED, "verdict": "failed"})
    plan = plan_upload(str(out), UploadOptions("me/long", allow_unvalidated=True))
    assert "Written on the Hub." in plan.card and "**failed**" in plan.card


def test_the_command_line_plans_sends_and_never_shows_the_token(out: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in ((["--dry-run"], 0), (["--dry-run", "--json"], 0), (["--json"], 0)):
        with pytest.raises(SystemExit) as stop:
            cli.main(["upload", str(out), "me/long", *arguments])
        shown = capsys.readouterr()
        assert stop.value.code == code, shown.err
        assert TOKEN not in shown.out + shown.err
        assert ("me/long" in hub.repos) == ("--dry-run" not in arguments)
        if "--json" in arguments:
            assert {"repo", "files", "warnings"} <= set(json.loads(shown.out))
    with pytest.raises(SystemExit) as stop:
        cli.main(["upload", str(out), "nobody"])
    assert stop.value.code == 1 and "user/name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["card", str(out)])
    assert BEGIN in capsys.readouterr().out


@crosses
def test_a_base_on_the_hub_is_extended_without_moving_a_weight(
    base: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Config, index and headers come here, by range; the weights are copied from the pinned commit, in one commit with the rest."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="never validated"):
        push("some-org/base", ConvertOptions(Recipe(scale=4.0)), "me/long")
    assert "me/long" not in hub.repos
    push("some-org/base", ConvertOptions(Recipe(scale=4.0)), "me/long", unvalidated=True)
    head = hub.repos["me/long"].at()
    assert {n: f.data for n, f in head.files.items() if n.endswith(".safetensors")} == {
        p.name: p.read_bytes() for p in base.glob("*.safetensors")
    }
    config = json.loads(head.files["config.json"].data)
    assert (config["max_position_embeddings"], config["rope_scaling"]["rope_type"]) == (4 * CONTEXT, "yarn")
    manifest = json.loads(head.files["yarn_convert.json"].data)
    assert (manifest["base"]["commit"], manifest["weights"]["identical_to_base"]) == (SHA, True)
    assert len(manifest["weights"]["files"]) == 2
    assert b"byte for byte the base's" in head.files["README.md"].data
    weights = [e for e in hub.log if e.method == "GET" and "resolve" in e and e.endswith(".safetensors")]
    assert not weights, "a whole weight file was downloaded"
    assert hub.received.total() < 100_000
    assert list(tmp_path.glob("*yarn*")) == []


@crosses
def test_a_push_that_cannot_be_copied_is_converted_and_uploaded(
    base: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    hub.repos["some-org/base"].region = "eu"
    push("some-org/base", ConvertOptions(Recipe(scale=4.0)), "me/long", unvalidated=True)
    assert {p.name: p.read_bytes() for p in base.glob("*.safetensors")} == {
        n: f.data for n, f in hub.repos["me/long"].at().files.items() if n.endswith(".safetensors")
    }
    push("some-org/base", ConvertOptions(Recipe(scale=4.0), out="gguf"), "me/long-gguf", unvalidated=True)
    assert "base-yarn-256.gguf" in hub.repos["me/long-gguf"].at().files


def test_weights_whose_type_changes_go_from_hub_to_hub_file_by_file(
    base: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Convert, upload, delete: the result is what a conversion here would have written, and a second run sends no weight."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    push("some-org/base", ConvertOptions(Recipe(scale=4.0), outtype="f16"), "me/half", unvalidated=True, say=said.append)
    assert [line.split(":")[0] for line in said] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert list(tmp_path.glob("*half*")) == [] and not list(tmp_path.glob("cache/**/*.safetensors"))
    head = hub.repos["me/half"].at()
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name, file in head.files.items():
        if name != ".gitattributes":
            (folder / name).write_bytes(file.data)
    convert(str(base), Recipe(scale=4.0), outtype="f16", output=tmp_path / "here")
    ours, theirs = (read_folder(f)[0] for f in (folder, tmp_path / "here"))
    assert {n: (t.dtype, t.read().tobytes()) for n, t in ours.items()} == {n: (t.dtype, t.read().tobytes()) for n, t in theirs.items()}
    assert json.loads(head.files["yarn_convert.json"].data)["outtype"] == "f16"
    sent = sum(e.received for e in hub.log if e.method == "PUT")
    push("some-org/base", ConvertOptions(Recipe(scale=4.0), outtype="f16"), "me/half", unvalidated=True, say=said.append)
    assert sum(e.received for e in hub.log if e.method == "PUT") == sent
    assert validate_weights(folder) == "passed"


@crosses
@pytest.mark.parametrize("outtype", ["auto", "f16"])
def test_only_the_weights_of_the_model_are_pushed(
    base: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outtype: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    weights = {p.name for p in base.glob("*.safetensors")}
    for name in ("consolidated.safetensors", "optimizer.safetensors", "model.fp8.safetensors"):
        shutil.copy(next(base.glob("*.safetensors")), base / name)
    hub.repos |= Hub({"some-org/more": base}).repos
    hub.blobs |= {f.sha256: f for f in hub.repos["some-org/more"].at().files.values()}
    push("some-org/more", ConvertOptions(Recipe(scale=4.0), outtype=outtype), "me/long", unvalidated=True)
    files = hub.repos["me/long"].at().files
    assert {n for n in files if n.endswith(".safetensors")} == weights
    assert {f["file"] for f in json.loads(files["yarn_convert.json"].data)["weights"]["files"]} == weights
    assert set(json.loads(files["model.safetensors.index.json"].data)["weight_map"].values()) == weights


def test_a_push_of_pickled_weights_is_converted_here(
    hub: Hub, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    model = make_model(name="pickled")
    torch.save(load_torch(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    hub.repos |= Hub({"some-org/pickled": model}).repos
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    push("some-org/pickled", ConvertOptions(Recipe(scale=4.0)), "me/long", unvalidated=True)
    assert hub.repos["me/long"].at().files["model.safetensors"].size > 100_000


def validate_weights(folder: Path) -> str:
    from yarn_convert.checkpoint import open_checkpoint
    from yarn_convert.checkpoint.manifest import read_manifest
    from yarn_convert.checkpoint.source import resolve
    from yarn_convert.compute.weights import check_weights

    return str(check_weights(open_checkpoint(resolve(str(folder))), None, read_manifest(folder), lambda n: None)["verdict"])


@pytest.mark.parametrize(
    "fault", [Fault("^PUT ", cut=100_000), Fault("^PUT ", status=500), Fault("batch", status=429)], ids=["cut", "500", "429"]
)
def test_a_connection_that_breaks_is_tried_again(out: Path, hub: Hub, fault: Fault) -> None:
    path = next(out.glob("*.safetensors"))
    save_file({k: v + 1 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    recorded(out)
    hub.faults.append(fault)
    run_upload(plan_upload(str(out), UploadOptions("me/long")))
    assert hub.repos["me/long"].at().files[path.name].data == path.read_bytes()


def test_killed_in_the_middle_and_run_again_gives_the_same_repository(out: Path, hub: Hub) -> None:
    """The weights are on the Hub when it stops, before the commit: nothing is visible, and nothing is sent again."""
    path = next(out.glob("*.safetensors"))
    save_file({k: v + 1 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    recorded(out)
    hub.faults.append(Fault("POST .*/commit/", status=409))
    with pytest.raises(OutputError) as stopped:
        run_upload(plan_upload(str(out), UploadOptions("me/long")))
    assert "nothing is sent twice" in stopped.value.hint
    assert set(hub.repos["me/long"].at().files) <= {".gitattributes"}
    before = sum(e.received for e in hub.log if e.method == "PUT")
    run_upload(plan_upload(str(out), UploadOptions("me/long")))
    assert sum(e.received for e in hub.log if e.method == "PUT") == before > 0
    assert hub.repos["me/long"].at().files[path.name].data == path.read_bytes()


@crosses
def test_a_dry_run_of_a_push_shows_every_file_and_sends_nothing(
    base: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    hub.repos["some-org/base"].gated = False
    with pytest.raises(SystemExit) as stop:
        cli.main(["some-org/base", "--scale", "4", "--push", "me/long", "--dry-run", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert (stop.value.code, "me/long" in hub.repos) == (0, False)
    assert {f["file"]: f["way"] for f in plan["upload"]["files"]}["model-00001-of-00002.safetensors"] == "copy"
    with pytest.raises(SystemExit):
        cli.main(["some-org/base", "--scale", "4", "--push", "me/long"])
    assert "--allow-unvalidated" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["some-org/base", "--scale", "4", "--push", "me/long", "--allow-unvalidated", "--json"])
    assert "commit" in json.loads(capsys.readouterr().out)["url"]


@crosses
@pytest.mark.parametrize("local", [False, True])
def test_a_push_shows_its_plan_before_anything_is_sent_and_no_bars_of_the_client(
    base: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], local: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    enable_progress_bars()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(base) if local else "some-org/base", "--scale", "4", "-o", "x", "--push", "me/long", "--allow-unvalidated"])
    shown = capsys.readouterr()
    assert not stop.value.code and shown.out.startswith(constants.ENDPOINT) and "%|" not in shown.err
    steps = (
        ["push      me/long, once it is made here", "writing x"] if local else ["headers of some-org/base", "to         me/long", "in all"]
    )
    at = [shown.err.index(f"\n{said}") for said in ["method    yarn", *steps, "uploading to me/long"] if not said.startswith("headers")]
    assert at == sorted(at) and all(said in shown.err for said in steps)


def test_upload_returns_what_is_printed(out: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["upload", str(out), "me/long", "--private", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["repo", "files", "left", "warnings", "url"]
    done = upload(str(out), "me/copy", private=True)
    assert hub.repos["me/copy"].private
    assert {f["way"] for f in told["files"]} >= {"upload", "copy"}
    assert str(done.to_dict()).replace("me/copy", "me/long") == str({**told, "url": done.url.replace("me/copy", "me/long")})
    assert done.url.startswith(told["url"].partition("/me/long")[0]) and "/me/copy/commit/" in done.url
    commits = len(hub.repos["me/copy"].commits)
    again = upload(str(out), "me/copy")
    assert {i.way for i in again.files} == {"unchanged"} and again.url == done.url
    assert len(hub.repos["me/copy"].commits) == commits
    recorded(out, validation={**PASSED, "verdict": "failed"})
    changed = plan_upload(str(out), UploadOptions("me/copy", allow_unvalidated=True)).items
    assert {i.name for i in changed if i.way == "upload"} == {"README.md", "yarn_convert.json"}
