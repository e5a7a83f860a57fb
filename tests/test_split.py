"""Split GGUFs: read as the gguf package writes them, written as llama.cpp reads them, and extended by their first part alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import CONTEXT, MakeModel, write_tensors_of

from yarn_convert import runtimes
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.manifest import manifest_path, read_manifest
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.conversion import convert, prepare
from yarn_convert.conversion.repair import plan_repair
from yarn_convert.errors import InputError, OutputError, Unsupported, UsageError
from yarn_convert.formats.gguf_file import Field, Value, encode_header, open_gguf
from yarn_convert.formats.split import part_name, read_model, stem_of
from yarn_convert.options import ConvertOptions, Recipe, RepairOptions
from yarn_convert.publishing.hub import _files
from yarn_convert.targets import moving, places

HERE = "split.no", "split.count", "split.tensors.count"


def resplit(whole: Path, out: Path, max_tensors: int = 6, small_first: bool = False) -> list[Path]:
    """`whole` split by the gguf package's writer."""
    reader = gguf.GGUFReader(whole)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, arch, split_max_tensors=max_tensors, small_first_shard=small_first)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub)
    write_tensors_of(reader, writer)
    return sorted(out.parent.glob(f"{out.stem}-*-of-*.gguf"))


def changed(part: Path, change: Callable[[dict[str, Any]], Any], drop: str = "") -> None:
    """A part with other fields, and without the tensor `drop`; packed anew."""
    g = open_gguf(part)
    fields: dict[str, Field | Value] = dict(g.fields)
    change(fields)
    tensors = [t for t in g.tensors.values() if t.name != drop]
    header, offsets = encode_header(fields, tensors, g.alignment)
    data = bytearray(header)
    for t in tensors:
        data[len(data) :] = b"\0" * (offsets[t.name] - len(data)) + t.read().tobytes()
    part.write_bytes(bytes(data) + b"\0" * (-len(data) % g.alignment))


def tensors_of(*paths: Path) -> dict[str, tuple[str, bytes]]:
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for path in paths for t in gguf.GGUFReader(path).tensors}


def fields_of(path: Path) -> dict[str, Any]:
    return {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items() if not k.startswith("GGUF.")}


def parts_of(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f"{out.stem}-?????-of-?????.gguf"))


def logits(model: Path, n: int = 200) -> np.ndarray:
    pytest.importorskip("llama_cpp")
    return runtimes.run("llama.cpp", model, np.arange(n) % 200 + 3, [(0, n)]).logits


@pytest.fixture
def whole(make_model: MakeModel, tmp_path: Path) -> Path:
    convert(str(make_model()), Recipe(method="none"), out="gguf", output=tmp_path / "whole.gguf")
    return tmp_path / "whole.gguf"


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    found = resplit(whole, tmp_path / "m.gguf")
    assert [p.name for p in found] == [f"m-{i + 1:05d}-of-00004.gguf" for i in range(4)]
    return found


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small_first", [False, True])
def test_parts_read_as_one_are_the_whole(whole: Path, tmp_path: Path, small_first: bool) -> None:
    parts = resplit(whole, tmp_path / "m.gguf", small_first=small_first)
    c, expected = open_checkpoint(resolve(str(parts[0]))), open_checkpoint(resolve(str(whole)))
    assert c.weight_files == tuple(parts)
    assert {n: (t.dtype, t.shape, t.read().tobytes()) for n, t in c.tensors.items()} == {
        n: (t.dtype, t.shape, t.read().tobytes()) for n, t in expected.tensors.items()
    }
    assert (c.rope, c.context, c.hparams, c.config) == (expected.rope, expected.context, expected.hparams, expected.config)
    assert c.source.name == "m"


def _count_in(part: int, value: int) -> Callable[[list[Path]], None]:
    return lambda parts: changed(parts[part], lambda f: f.update({"split.count": Value("u16", value)}))


def _swap(parts: list[Path]) -> None:
    a, b = parts[1].read_bytes(), parts[2].read_bytes()
    parts[1].write_bytes(b)
    parts[2].write_bytes(a)


def _double(parts: list[Path]) -> None:
    shutil.copy(parts[1], parts[2])
    changed(parts[2], lambda f: f.update({"split.no": Value("u16", 2)}))


SPOILED: dict[str, tuple[Callable[[list[Path]], Any], int, str]] = {
    "a part is missing": (lambda p: p[2].unlink(), 0, "m-00003-of-00004.gguf"),
    "two are missing": (lambda p: (p[1].unlink(), p[3].unlink()), 0, "2 of the 4 parts .* first m-00002"),
    "a part that is a folder": (lambda p: (p[2].unlink(), p[2].mkdir()), 0, "m-00003-of-00004.gguf"),
    "not the first": (lambda p: None, 1, "part 2 of 4"),
    "another count": (_count_in(1, 5), 0, "5 parts"),
    "swapped": (_swap, 0, "says that it is part 3"),
    "no split.no": (lambda p: changed(p[1], lambda f: f.pop("split.no")), 0, "split.no is missing"),
    "no split.no in the first": (lambda p: changed(p[0], lambda f: f.pop("split.no")), 0, "split.no is missing"),
    "a tensor twice": (_double, 0, "is in two parts"),
    "a tensor less": (lambda p: changed(p[3], lambda f: None, drop="output_norm.weight"), 0, "hold 21 tensors, they hold 20"),
    "no total": (lambda p: changed(p[0], lambda f: f.pop("split.tensors.count")), 0, "split.tensors.count is missing"),
    "a count that is text": (lambda p: changed(p[0], lambda f: f.update({"split.count": Value("str", "x")})), 0, "split.count is 'x'"),
    "a part cut short": (lambda p: os.truncate(p[2], 1000), 0, "m-00003-of-00004.gguf"),
    "another name": (lambda p: p[0].rename(p[0].with_name("first.gguf")), -1, "not named so"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_parts_that_do_not_belong_together_are_one_clear_error(parts: list[Path], case: str) -> None:
    spoil, opened, says = SPOILED[case]
    spoil(parts)
    with pytest.raises(InputError, match=says) as e:
        read_model(parts[opened] if opened >= 0 else parts[0].with_name("first.gguf"))
    assert e.value.hint
    if case == "not the first":
        assert "m-00001-of-00004.gguf" in e.value.hint


def test_a_folder_with_a_split_gguf_hints_at_its_first_part(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for p in reversed(parts):
        p.rename(tmp_path / "f" / p.name)
    with pytest.raises(InputError) as e:
        resolve(str(tmp_path / "f"))
    assert e.value.hint.endswith(parts[0].name)


# -- writing ----------------------------------------------------------------------------------------------------------


def test_what_fits_one_part_is_one_file(make_model: MakeModel, tmp_path: Path) -> None:
    model = str(make_model())
    convert(model, Recipe(scale=4), out="gguf", output=tmp_path / "one.gguf")
    manifest = convert(model, Recipe(scale=4), out="gguf", output=tmp_path / "cut.gguf", split_max_size="1M").to_dict()
    assert (tmp_path / "cut.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()
    assert [f["file"] for f in manifest["weights"]["files"]] == ["cut.gguf"]


def test_sizes_are_those_of_gguf_split(monkeypatch: pytest.MonkeyPatch, make_model: MakeModel, tmp_path: Path) -> None:
    """As the gguf package cuts, which counts a tensor's bytes; padded or not makes no difference here."""
    from yarn_convert.targets import parts as rule

    monkeypatch.setitem(rule.UNITS, "M", 1000)
    model = str(make_model())
    convert(model, Recipe(scale=4), out="gguf", output=tmp_path / "one.gguf")
    manifest = convert(model, Recipe(scale=4), out="gguf", output=tmp_path / "cut.gguf", split_max_size="80M").to_dict()
    reader = gguf.GGUFReader(tmp_path / "one.gguf")
    writer = gguf.GGUFWriter(None, "llama", split_max_size=80_000)
    for t in reader.tensors:
        writer.add_tensor_info(t.name, t.data.shape, t.data.dtype, t.data.nbytes, raw_dtype=t.tensor_type)
    parts = parts_of(tmp_path / "cut.gguf")
    assert len(parts) > 2
    assert [[t.name for t in gguf.GGUFReader(p).tensors] for p in parts] == [list(names) for names in writer.tensors]
    assert tensors_of(*parts) == tensors_of(tmp_path / "one.gguf")
    first, one = fields_of(parts[0]), fields_of(tmp_path / "one.gguf")
    assert {k: first.pop(k) for k in HERE} == {"split.no": 0, "split.count": len(parts), "split.tensors.count": len(reader.tensors)}
    assert first == one
    for no, p in enumerate(parts):
        types = {k: gguf.GGUFReader(p).fields[k].types[0].name for k in HERE}
        assert types == {"split.no": "UINT16", "split.count": "UINT16", "split.tensors.count": "INT32"}
        assert fields_of(p)["split.no"] == no
    assert [f["file"] for f in manifest["weights"]["files"]] == [p.name for p in parts]
    assert {"output": str(parts[0]), **json.loads((tmp_path / "cut.yarn_convert.json").read_text())} == manifest
    assert manifest_path(parts[0]) == manifest_path(parts[2]) == tmp_path / "cut.yarn_convert.json"
    np.testing.assert_array_equal(logits(parts[0]), logits(tmp_path / "one.gguf"))


def test_frequencies_go_into_the_first_part(monkeypatch: pytest.MonkeyPatch, make_model: MakeModel, tmp_path: Path) -> None:
    from yarn_convert.targets import parts as rule

    monkeypatch.setitem(rule.UNITS, "M", 1000)
    model = str(make_model())
    for name, size in (("one", None), ("cut", "80M")):
        convert(model, Recipe(scale=4), out="gguf", output=tmp_path / f"{name}.gguf", carry="tensors", split_max_size=size)
    first, *others = parts_of(tmp_path / "cut.gguf")
    assert "rope_freqs.weight" in tensors_of(first)
    assert tensors_of(first, *others) == tensors_of(tmp_path / "one.gguf")
    np.testing.assert_array_equal(logits(first), logits(tmp_path / "one.gguf"))


@pytest.mark.parametrize("text", ["5", "5K", "5GB", "-5G", "0G", "", "5.5G", "5g", "٥G"])
def test_a_size_that_is_none_is_refused(whole: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="split-max-size"):
        prepare(str(whole), ConvertOptions(Recipe(scale=4), output=tmp_path / "o.gguf", split_max_size=text))


def test_parts_belong_to_gguf(make_model: MakeModel) -> None:
    with pytest.raises(UsageError, match="split-max-size"):
        prepare(str(make_model()), ConvertOptions(Recipe(scale=4), split_max_size="5G"))


# -- a split model stays split ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("carry", ["metadata", "tensors"])
@pytest.mark.parametrize("small_first", [False, True])
def test_a_split_model_is_extended_by_its_first_part_alone(whole: Path, tmp_path: Path, carry: str, small_first: bool) -> None:
    parts = resplit(whole, tmp_path / "m.gguf", small_first=small_first)
    convert(str(whole), Recipe(scale=4), output=tmp_path / "one.gguf", carry=carry)
    manifest = convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "out.gguf", carry=carry).to_dict()
    out = parts_of(tmp_path / "out.gguf")
    assert [p.name for p in out] == [p.name.replace("m-", "out-") for p in parts]
    assert [p.read_bytes() for p in out[1:]] == [p.read_bytes() for p in parts[1:]]
    assert tensors_of(*out) == tensors_of(tmp_path / "one.gguf")
    expected = fields_of(tmp_path / "one.gguf")
    assert {k: v for k, v in fields_of(out[0]).items() if k not in HERE} == expected
    how = [f["how"] for f in manifest["weights"]["files"]]
    assert how[0] == "written" and set(how[1:]) <= {"copy", "reflink"}
    np.testing.assert_array_equal(logits(out[0]), logits(tmp_path / "one.gguf"))
    c = open_checkpoint(resolve(str(out[0])))
    assert (c.context, c.ours) == (4 * CONTEXT, True)


def test_parts_are_linked_when_that_is_asked_for(parts: list[Path], tmp_path: Path) -> None:
    manifest = convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "out.gguf", link=True).to_dict()
    out = parts_of(tmp_path / "out.gguf")
    assert [p.stat().st_ino for p in out[1:]] == [p.stat().st_ino for p in parts[1:]]
    assert out[0].stat().st_ino != parts[0].stat().st_ino
    assert [f["how"] for f in manifest["weights"]["files"]] == ["written"] + ["hard link"] * 3


def test_a_split_model_becomes_one_file_when_that_is_asked_for(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    convert(str(whole), Recipe(scale=4), output=tmp_path / "one.gguf")
    convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "out.gguf", split_max_size="none")
    assert fields_of(tmp_path / "out.gguf") == fields_of(tmp_path / "one.gguf")
    assert tensors_of(tmp_path / "out.gguf") == tensors_of(tmp_path / "one.gguf")


def test_another_type_keeps_the_parts(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    convert(str(whole), Recipe(scale=4), output=tmp_path / "one.gguf", outtype="q8_0")
    convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "out.gguf", outtype="q8_0")
    out = parts_of(tmp_path / "out.gguf")
    assert [list(tensors_of(p)) for p in out] == [list(tensors_of(p)) for p in parts]
    assert tensors_of(*out) == tensors_of(tmp_path / "one.gguf")
    np.testing.assert_array_equal(logits(out[0]), logits(tmp_path / "one.gguf"))


def test_a_split_model_becomes_a_folder(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    for model, out in ((whole, "a"), (parts[0], "b")):
        convert(str(model), Recipe(scale=4), out="safetensors", output=tmp_path / out)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()


def test_alignment_is_kept_in_every_part(whole: Path, tmp_path: Path) -> None:
    parts = resplit(whole, tmp_path / "m.gguf")
    for p in parts:
        g = open_gguf(p)
        header, offsets = encode_header({**g.fields, "general.alignment": Value("u32", 128)}, g.tensors.values(), 128)
        data = bytearray(header)
        for t in g.tensors.values():
            data[len(data) :] = b"\0" * (offsets[t.name] - len(data)) + t.read().tobytes()
        p.write_bytes(bytes(data) + b"\0" * (-len(data) % 128))
    convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "out.gguf", outtype="f16")
    out = parts_of(tmp_path / "out.gguf")
    assert [open_gguf(p).alignment for p in out] == [128] * 4
    assert np.isfinite(logits(out[0])).all()


def test_in_place_changes_the_first_part_alone(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "new.gguf", carry="tensors")
    before = [p.read_bytes() for p in parts[1:]]
    try:
        manifest = convert(str(parts[0]), Recipe(scale=4), in_place=True, carry="tensors").to_dict()
    except OutputError as e:
        assert "cannot insert" in e.message
        pytest.skip("this file system cannot insert a range")
    assert [p.read_bytes() for p in parts[1:]] == before
    new = parts_of(tmp_path / "new.gguf")
    assert tensors_of(*parts) == tensors_of(*new)
    a, b = fields_of(parts[0]), fields_of(new[0])
    assert json.loads(a.pop("yarn_convert.recipe")) == json.loads(b.pop("yarn_convert.recipe"))
    assert a == b
    assert [f["how"] for f in manifest["weights"]["files"]] == ["in place", "as it was", "as it was", "as it was"]
    assert manifest_path(parts[0]) == tmp_path / "m.yarn_convert.json"
    assert manifest_path(parts[0]).exists()
    np.testing.assert_array_equal(logits(parts[0]), logits(new[0]))


def test_in_place_is_refused_where_another_part_would_change(make_model: MakeModel, tmp_path: Path) -> None:
    convert(str(make_model()), Recipe(scale=4), out="gguf", output=tmp_path / "w.gguf", carry="tensors")
    parts = resplit(tmp_path / "w.gguf", tmp_path / "m.gguf")  # rope_freqs.weight is the last tensor
    before = [p.read_bytes() for p in parts]
    with pytest.raises(Unsupported, match="more than the first part"):
        convert(str(parts[0]), Recipe(context=512, original_context=CONTEXT), in_place=True)
    assert [p.read_bytes() for p in parts] == before
    convert(str(parts[0]), Recipe(context=512, original_context=CONTEXT), output=tmp_path / "new.gguf", carry="tensors")
    assert fields_of(parts_of(tmp_path / "new.gguf")[0])["llama.context_length"] == 512


# -- places -----------------------------------------------------------------------------------------------------------


def test_an_existing_part_is_refused_and_all_are_replaced_by_force(parts: list[Path], tmp_path: Path) -> None:
    convert(str(parts[0]), Recipe(scale=2), output=tmp_path / "out.gguf")
    parts_of(tmp_path / "out.gguf")[0].unlink()
    with pytest.raises(OutputError, match=r"00002-of-00004\.gguf exists"):
        convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "out.gguf")
    convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "out.gguf", force=True)
    convert(str(parts[0]), Recipe(scale=8), output=tmp_path / "out.gguf", force=True)
    assert read_model(tmp_path / "out-00001-of-00004.gguf").get("llama.context_length") == 8 * CONTEXT
    assert not list(tmp_path.glob(".*"))


def test_two_models_never_share_a_manifest(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="manifest would have the same name"):
        convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "m.gguf", split_max_size="none", force=True)
    with pytest.raises(OutputError, match="inside one another"):
        convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "m.gguf")
    with pytest.raises(OutputError, match="manifest would have the same name"):
        convert(str(parts[0]), Recipe(scale=4), output=whole, force=True)
    assert prepare(str(parts[0]), ConvertOptions(Recipe(method="none"))).plan.out.name == "m-00001-of-00004.gguf"


def test_while_parts_are_put_into_place_no_first_part_is_there(parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(str(parts[0]), Recipe(scale=2), output=tmp_path / "out.gguf")
    first, seen = tmp_path / "out-00001-of-00004.gguf", []
    real = places.rename_new

    def spy(source: Path, place: Path) -> None:
        if place.parent == tmp_path:
            seen.append((place.name, first.exists()))
        real(source, place)

    monkeypatch.setattr(places, "rename_new", spy)
    convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "out.gguf", force=True)
    assert not any(there for _, there in seen[:-1])
    assert [name for name, _ in seen[-2:]] == [first.name, "out.yarn_convert.json"]
    assert len(seen) == 5


def test_an_interrupted_split_output_leaves_nothing(parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(moving, "copy_range", fails)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match="disk is full"):
        convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "out.gguf")
    assert sorted(tmp_path.iterdir()) == before


def test_names() -> None:
    assert part_name("a-b", 1, 12) == "a-b-00002-of-00012.gguf"
    assert stem_of(Path("x/a-b-00002-of-00012.gguf")) == "a-b"
    assert stem_of(Path("-00002-of-00012.gguf")) == "-00002-of-00012"
    assert stem_of(Path("a-2-of-12.gguf")) == "a-2-of-12"


# -- the other commands -----------------------------------------------------------------------------------------------


def test_inspect_validate_repair_and_upload_take_the_first_part(
    whole: Path, parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "out.gguf", hash=True)
    first, *_ = out = parts_of(tmp_path / "out.gguf")
    facts = []
    for model in (first, whole):
        with pytest.raises(SystemExit):
            cli.main(["inspect", str(model), "--json"])
        facts.append(json.loads(capsys.readouterr().out))
    assert facts[0]["parameters"] == facts[1]["parameters"]
    assert facts[0]["context"] == 4 * CONTEXT
    assert set(_files(open_checkpoint(resolve(str(first))))) == {*(p.name for p in out), "out.yarn_convert.json"}
    plan = plan_repair(str(first), RepairOptions(output=tmp_path / "fixed.gguf"))
    assert plan.changes == ()
    plan.run()
    assert tensors_of(*parts_of(tmp_path / "fixed.gguf")) == tensors_of(*out)


def test_hashes_of_all_parts_are_checked(parts: list[Path], tmp_path: Path) -> None:
    from yarn_convert.compute.weights import check_weights

    convert(str(parts[0]), Recipe(scale=4), output=tmp_path / "out.gguf", hash=True)
    manifest = read_manifest(tmp_path / "out.gguf")
    out = parts_of(tmp_path / "out.gguf")
    renamed = [p.rename(p.with_name(p.name.replace("out-", "other-"))) for p in out]
    c = open_checkpoint(resolve(str(renamed[0])))
    assert check_weights(c, None, manifest, lambda n: None)["verdict"] == "passed"
    with open(renamed[2], "r+b") as f:
        f.seek(-1, 2)
        f.write(b"x")
    assert check_weights(c, None, manifest, lambda n: None)["different"] == [renamed[2].name]
