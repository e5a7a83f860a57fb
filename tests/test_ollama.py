"""The Modelfile of an output, and `ollama create` by a program of that name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MakeModel

from yarn_convert.checkpoint.naming import modelfile_from
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.cli.show import next_steps


def run(*words: str) -> int:
    try:
        cli.main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)
    raise AssertionError


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for Ollama")
@pytest.mark.parametrize("fails", [False, True])
def test_ollama_gets_the_model_with_its_context(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    model = make_model()
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ollama"
    program.write_text('#!/bin/sh\necho "$@" >> log\n' + ("echo no such thing >&2\nexit 1\n" if fails else 'cat "$4" >> log\n'))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    code = run("tiny", "--scale", "4", "--out", "gguf", "--outtype", "q8_0", "--ollama")
    name = "tiny-yarn-256.Q8_0"
    log = Path("log").read_text().splitlines()
    assert log[0] == f"create tiny-yarn-256:q8_0 -f {name}.Modelfile"
    err = capsys.readouterr().err
    assert code == (1 if fails else 0) and ("no such thing" in err if fails else "ollama run tiny-yarn-256:q8_0" in err)
    text = Path(f"{name}.Modelfile").read_text()
    assert text == f'FROM ./{name}.gguf\nPARAMETER num_ctx 256\nLICENSE """apache-2.0"""\n'
    assert modelfile_from(text) == f"./{name}.gguf" and resolve(f"{name}.Modelfile").path.samefile(f"{name}.gguf")
    Path(f"{name}.gguf").unlink()
    Path(f"{name}.yarn_convert.json").unlink()
    assert run("tiny", "--scale", "4", "--out", "gguf", "--outtype", "q8_0", "--ollama") == 1
    assert f"{name}.Modelfile exists" in capsys.readouterr().err and not Path(f"{name}.gguf").exists()


def test_without_ollama_its_command_is_said(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model()
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert run("tiny", "--scale", "4", "--ollama") == 1
    assert "--ollama is for a GGUF" in capsys.readouterr().err
    assert run("tiny", "--scale", "4", "-o", "x.gguf", "--ollama") == 0
    err = capsys.readouterr().err
    assert "ollama create x -f x.Modelfile" in err and "lms import" in err and "llama-server -m x.gguf -c 256" in err
    assert "yarn-convert evaluate perplexity tiny x.gguf --windows 64" in err, "which measures what short texts cost"
    assert "printf" not in err, "it is there already"
    assert run("tiny", "--method", "none", "-o", "a model.gguf") == 0
    err = capsys.readouterr().err
    assert "evaluate" not in err, "nothing was extended"
    assert "yarn-convert validate 'a model.gguf' --base tiny\n" in err
    step = next(line for line in err.splitlines() if line.startswith("Ollama"))
    subprocess.run(["/bin/sh", "-c", step.removeprefix("Ollama").strip()], check=False, capture_output=True)
    assert Path("a model.Modelfile").read_text() == "FROM ./a model.gguf\nPARAMETER num_ctx 64\n"
    assert resolve("a model.Modelfile").path.samefile("a model.gguf")


def test_what_is_done_is_no_next_step(tmp_path: Path) -> None:
    done = next_steps(tmp_path / "x.gguf", 256, True, base="tiny", done=["check", "upload"])
    assert not any(line.startswith(("check", "upload")) for line in done) and any(line.startswith("LM Studio") for line in done)
    assert not any("printf" in line for line in next_steps(tmp_path / "x-00001-of-00002.gguf", 256, True)), "each part has a FROM"
