"""The card of a repository of several GGUFs, and a conversion that is proved before it is published; on a Hub on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hub_server import File, Hub
from test_upload import base, hub, metadata, recorded  # noqa: F401 - fixtures

from yarn_convert import Recipe, convert, validation
from yarn_convert.cli import entry as cli
from yarn_convert.options import UploadOptions
from yarn_convert.publishing import plan_upload, run_upload


def rows(card: str) -> dict[str, list[str]]:
    """The table of files: cells by file."""
    found = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in card.splitlines() if ".gguf` |" in line]
    return {name: rest for name, *rest in found}


def test_the_card_lists_what_lies_in_the_repository(base: Path, hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    made = {
        t: convert(str(base), Recipe(scale=4), out="gguf", outtype=t, output=tmp_path / f"m.{t.upper()}.gguf").output
        for t in ("q8_0", "f16", "bf16")
    }
    recorded(made["q8_0"])
    run_upload(plan_upload(str(made["q8_0"]), UploadOptions("me/long")))
    first = hub.repos["me/long"].at().files["README.md"].data.decode()
    assert rows(first) == {} and first.count("# long\n") == 1, "of one there is no table"
    recorded(made["f16"], validation=None)
    run_upload(plan_upload(str(made["f16"]), UploadOptions("me/long", allow_unvalidated=True)))
    text = hub.repos["me/long"].at().files["README.md"].data.decode()
    assert rows(text) == {
        "m.F16.gguf": ["F16", "0.00 GiB", "256", "yarn", "no"], "m.Q8_0.gguf": ["Q8_0", "0.00 GiB", "256", "yarn", "passed"],
    }  # fmt: skip
    assert text.count("# long\n") == text.count("# m.F16\n") == text.count("# m.Q8_0\n") == 1
    files = hub.repos["me/long"].at().files
    del files["m.Q8_0.gguf"]  # by hand; and another tool's
    files["theirs-Q4_0.gguf"] = File(b"GGUF", True)
    recorded(made["bf16"])
    card = plan_upload(str(made["bf16"]), UploadOptions("me/long")).card
    assert {name: cells[-1] for name, cells in rows(card).items()} == {
        "m.BF16.gguf": "passed",
        "m.F16.gguf": "no",
        "theirs-Q4_0.gguf": "no",
    }
    assert "llama-cli -m m.Q8_0.gguf" not in card and card.count("llama-cli -m m.F16.gguf") == 1


@pytest.mark.parametrize("verdict", ["passed", "failed"])
def test_nothing_is_published_that_did_not_pass(
    base: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verdict: str  # noqa: F811
) -> None:  # fmt: skip
    """Of two files the second fails: neither is published."""
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def check(model: str, settings: Any, tell: Any) -> dict[str, Any]:
        asked.append(f"{model} {settings.base}")
        last = "F16" in model
        recorded(Path(model), validation={"verdict": verdict if last else "passed", "created": "2026-01-02T03:04:05+00:00"})
        return {"verdict": verdict if last else "passed"}

    monkeypatch.setattr(validation, "check", check)
    monkeypatch.setattr("yarn_convert.cli.proving.shown", lambda result, quiet: [str(result)])
    with pytest.raises(SystemExit) as stop:
        cli.main([str(base), "--scale", "4", "--out", "gguf", "--outtype", "q8_0,f16", "--validate", "--push", "me/long"])
    names = ["base-yarn-256.Q8_0.gguf", "base-yarn-256.F16.gguf"]
    assert asked == [f"{name} {base}" for name in names]
    there = hub.repos["me/long"].at().files if "me/long" in hub.repos else {}
    assert (stop.value.code, {n for n in there if n.endswith(".gguf")}) == ((0, set(names)) if verdict == "passed" else (3, set()))
    out = capsys.readouterr()
    assert ("/me/long/commit/" in out.out) == (verdict == "passed") and all(name in out.out for name in names)
