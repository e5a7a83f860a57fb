"""The command line as a user meets it: results on stdout, everything else on stderr, one line for an error."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import CONTEXT, MakeModel, wide, write_tensors_of

from yarn_convert.cli import show
from yarn_convert.cli.app import app
from yarn_convert.conversion import convert
from yarn_convert.conversion.extension import EXTENDING
from yarn_convert.errors import many
from yarn_convert.families import ALIASES
from yarn_convert.formats.files import DOCS
from yarn_convert.formats.gguf_file import open_gguf
from yarn_convert.options import Recipe

Run = subprocess.CompletedProcess[str]


def run(*arguments: object, cwd: Path | None = None) -> Run:
    return subprocess.run(
        [sys.executable, "-m", "yarn_convert", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )


def fails(*arguments: object, says: str, cwd: Path | None = None) -> None:
    done = run(*arguments, cwd=cwd)
    error, hint = done.stderr.splitlines()
    assert done.returncode == 1
    assert done.stdout == ""
    assert error.startswith("error: ")
    assert says in error
    assert hint.startswith("hint: ")


def test_help_starts_without_the_heavy_packages() -> None:
    code = "import sys; from yarn_convert.cli import main\ntry: main(['convert', '--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'llama_cpp', 'gguf', 'huggingface_hub', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--original-context" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_narrow_encoding_ends_nothing(encoding: str, make_model: MakeModel, tmp_path: Path) -> None:
    """Of a pipe on Windows, or under LC_ALL=C with the UTF-8 mode off."""
    make_model()
    for words in (("inspect", "--runtimes", "tiny"), ("methods",)):
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-m", "yarn_convert", *words], capture_output=True, cwd=tmp_path, env=env, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode(encoding)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_a_path_that_is_not_utf8_is_printed_as_it_is(make_model: MakeModel, tmp_path: Path) -> None:
    make_model()
    name = b"m\xff.gguf"
    command = [sys.executable, "-m", "yarn_convert", "tiny", "--scale", "4", "--out", "gguf", "-o", name]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == name + b"\n"
    assert (tmp_path / os.fsdecode(name)).exists()


def test_a_model_alone_means_convert(make_model: MakeModel, tmp_path: Path) -> None:
    make_model()
    short, long = (run(*words, "tiny", "--scale", 4, "--dry-run", "--json", cwd=tmp_path) for words in ((), ("convert",)))
    assert short.stdout == long.stdout
    plan = json.loads(short.stdout)
    assert plan["output"] == "tiny-yarn-256"
    assert plan["context"] == 4 * CONTEXT
    assert plan["readers"]["transformers-5"] == "exact"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"], "a dry run writes nothing"


def test_a_dry_run_of_a_push_says_where_it_would_go(make_model: MakeModel, tmp_path: Path) -> None:
    make_model()
    done = run("tiny", "--scale", 4, "--push", "me/long", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "push      me/long" in done.stderr


def test_a_type_may_be_spelled_as_llama_cpp_spells_it(make_model: MakeModel, tmp_path: Path) -> None:
    make_model()
    small, large = (
        run("tiny", "--scale", 4, "--out", "gguf", "--outtype", t, "--dry-run", "--json", cwd=tmp_path) for t in ("bf16", "BF16")
    )
    assert large.stdout == small.stdout != ""


def test_a_conversion_prints_where_it_went_and_what_to_do_next(make_model: MakeModel, tmp_path: Path) -> None:
    make_model()
    done = run("tiny", "--context", 256, "--out", "gguf", cwd=tmp_path)
    assert done.stdout == "tiny-yarn-256.gguf\n"
    for part in (
        "64 -> 256 tokens",
        "carrier   metadata",
        "exact in  llama.cpp",
        "llama-cli -m tiny-yarn-256.gguf -c 256",
        "yarn-convert validate",
    ):
        assert part in done.stderr
    assert open_gguf(tmp_path / "tiny-yarn-256.gguf").get("llama.context_length") == 256
    quiet = run("tiny", "--context", 256, "--out", "gguf", "-q", "--force", cwd=tmp_path)
    assert (quiet.stdout, quiet.stderr) == ("tiny-yarn-256.gguf\n", "")
    as_json = json.loads(run("tiny-yarn-256.gguf", "--scale", 8, "--json", cwd=tmp_path).stdout)
    assert as_json["output"] == "tiny-yarn-256-yarn-512.gguf"
    assert as_json["recipe"]["params"] == {"factor": 8.0}, "s counts from the original context, not from the extended one"


def test_inspect_shows_pairs_memory_and_what_is_inconsistent(make_model: MakeModel) -> None:
    scaling = {"type": "yarn", "factor": 4, "original_max_position_embeddings": CONTEXT}
    model = make_model(config={"rope_scaling": scaling, "max_position_embeddings": CONTEXT})
    text = run("inspect", model).stdout
    facts = json.loads(run("inspect", model, "--json").stdout)
    assert "LlamaForCausalLM" in text
    assert "interpolated" in text
    problems = "\n".join(facts["inconsistencies"])
    for part in ("not factor × original", "lacks rope_type", "exllamav3 computes something else"):
        assert part in problems
        assert part in text
    assert facts["kv_cache_bytes"] == {"64": 2 * 2 * 2 * 16 * 64 * 2}
    assert sum(facts["pairs"].values()) == 8


def test_inspect_finds_nothing_wrong_with_what_we_write(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    for i, out in enumerate(("safetensors", "gguf")):
        path = tmp_path / f"out{i}{'.gguf' if out == 'gguf' else ''}"
        convert(str(model), Recipe(scale=4), out=out, output=path)
        facts = json.loads(run("inspect", path, "--json").stdout)
        assert facts["inconsistencies"] == []
        assert (facts["original_context"], facts["context"], facts["scale"]) == (CONTEXT, 4 * CONTEXT, 4.0)


def test_inspect_names_keys_that_llama_cpp_ignores(make_model: MakeModel, tmp_path: Path) -> None:
    import gguf

    convert(str(make_model()), Recipe(scale=4), out="gguf", output=tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    for key, field in reader.fields.items():
        if key.startswith("llama.") or key == "general.name":
            writer.add_key_value(key, field.contents(), field.types[0], *field.types[1:2])
    writer.add_rope_scaling_yarn_attn_factor(1.5)
    write_tensors_of(reader, writer)
    facts = json.loads(run("inspect", tmp_path / "b.gguf", "--json").stdout)
    assert any("yarn_attn_factor is ignored" in line for line in facts["inconsistencies"])
    fails(tmp_path / "b.gguf", "--method", "none", "--out", "safetensors", "-o", tmp_path / "hf", says="yarn_attn_factor")


@pytest.mark.parametrize("arch", ["axk2", "granite-speech-5", "t5gemma2"])
def test_an_architecture_of_a_later_llama_cpp_is_one_line_and_what_can_be_done(tmp_path: Path, arch: str) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", arch)
    writer.add_context_length(64)
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    for arguments in (["inspect"], ["inspect", "--runtimes"], ["--scale", 4], ["validate"]):
        fails(*arguments, tmp_path / "a.gguf", says=f"unknown GGUF architecture '{arch}'")
    assert "llama.cpp's --rope-scaling yarn" in run("inspect", tmp_path / "a.gguf").stderr


def test_methods_lists_every_method_and_alias() -> None:
    text = run("methods").stdout
    assert all(f"  {name} " in text for name in (*EXTENDING, *ALIASES))
    assert text.count("When: ") == len(EXTENDING)
    assert json.loads(run("methods", "--json").stdout)["when"].keys() == set(EXTENDING)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lama2-7b", "--scale", 4], "no model"),
        (["--nope"], "--nope"),
        (["tiny", "--scale", "abc"], "--scale"),
        (["inspect"], "argument"),
        (["tiny", "--context", 3_000_000_000], "more than any reader"),
        (["tiny", "--scale", 4, "--original-context", 0], "--original-context"),
        (["tiny", "--scale", 1e30], "above 1 and below 1,000,000, not 1e+30"),
        (["tiny", "--scale", 4, "--push", "a", "--dry-run"], "no name of a repository"),
        (["tiny", "--scale", 4, "--private"], "--private belongs to --push"),
        (["tiny", "--scale", 4, "--allow-unvalidated"], "--allow-unvalidated belongs to --push"),
        (["tiny", "--scale", 4, "-o", "x" * 300], "cannot be named"),
        (["tiny", "--scale", 4, "-o", "a/folder.gguf", "--out", "safetensors"], "named like a GGUF"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(make_model: MakeModel, tmp_path: Path, arguments: list[object], says: str) -> None:
    make_model()
    fails(*arguments, says=says, cwd=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("words", [["methods"], ["inspect", "tiny"]])
def test_a_full_disk_under_stdout_is_one_line_and_a_hint(make_model: MakeModel, tmp_path: Path, words: list[str]) -> None:
    """Also where the text is so short that it is written at the end only."""
    make_model()
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "yarn_convert", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"], done.stderr


@pytest.mark.parametrize("words", ["convert", "evaluate", "evaluate perplexity", "evaluate advise", "runtimes add"])
def test_the_hint_names_the_help_of_the_command_that_was_given(words: str) -> None:
    done = run(*words.split(), "--nope")
    assert done.stderr.splitlines()[-1] == f"hint: yarn-convert {words} --help"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["valdate", "out.gguf"], "did you mean validate? See yarn-convert --help"),
        (["inspct"], "did you mean inspect? See yarn-convert --help"),
        (["smollm2-135m", "--scael", "4"], "did you mean --scale? See yarn-convert convert --help"),
        (["smollm2-135m", "--scale", "4", "-q", "Q4_K_M"], "-q is --quiet here; for the type of the weights: --outtype q4_k_m"),
    ],
)
def test_what_looks_like_something_else_is_answered_with_that(words: list[str], hint: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"hint: {hint}")


def test_a_model_may_have_a_name_like_a_command(make_model: MakeModel, tmp_path: Path) -> None:
    make_model().rename(tmp_path / "valdate")
    assert run("valdate", "--scale", 4, "--dry-run", cwd=tmp_path).returncode == 0


def test_an_error_is_json_where_json_was_asked_for() -> None:
    done = run("inspect", "nowhere.gguf", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert done.stderr.splitlines() == [f"error: {found['error']}", f"hint: {found['hint']}"]


def test_every_command_can_answer_in_json() -> None:
    group: Any = typer.main.get_command(app)
    each = [group.commands[name] for name in group.commands if name != "evaluate"]
    each += [inner for command in each for inner in getattr(command, "commands", {}).values()]
    each += group.commands["evaluate"].commands.values()
    assert [c.name for c in each if not any("--json" in p.opts for p in c.params)] == [] and len(each) >= 19


def test_capitals_are_forgiven(make_model: MakeModel, tmp_path: Path) -> None:
    make_model()
    plan = run("tiny", "--scale", 4, "--method", "YaRN", "--out", "GGUF", "--carry", "Metadata", "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(plan.stdout)["format"] == "gguf"


def on_a_terminal(*words: str, **env: str) -> str:
    """What a command prints on a terminal of 80 columns, which Python's pty is."""
    import pty

    told = (
        {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "TERMINAL_WIDTH")}
        | {"TERM": "xterm", "COLUMNS": "80"}
        | env
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "yarn_convert", *words], stdin=theirs, stdout=theirs, env=told) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # Linux ends a pty so
            while part := os.read(ours, 1 << 16):
                text += part
        os.close(ours)
    assert process.returncode == 0
    return text.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no ptys")
def test_help_is_coloured_on_a_terminal_that_wants_it() -> None:
    assert "\x1b[" in on_a_terminal("inspect", "-h")
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = on_a_terminal("inspect", "-h", **env)
        assert "\x1b[" not in plain
        assert "Options:" in plain
    assert "\x1b[" not in run("inspect", "-h").stdout


def test_a_page_of_the_documentation_is_shown_by_its_name() -> None:
    """Markdown in a pipe; the hint of an error that names one is a command that shows it."""
    there = {path.stem: path.read_text("utf-8") for path in DOCS.glob("*.md")}
    listed = run("docs").stdout
    for name, text in there.items():
        assert re.search(rf"^  {name} +{re.escape(text.splitlines()[0][2:])}$", listed, re.MULTILINE)
    assert run("docs", "validation").stdout == run("docs", "docs/Validation.md").stdout == there["validation"]
    assert Path(run("docs", "formats", "--path").stdout.strip()).read_text("utf-8") == there["formats"]
    assert json.loads(run("docs", "--json").stdout)["pages"].keys() == there.keys()
    assert json.loads(run("docs", "formats", "--json").stdout)["text"] == there["formats"]
    done = run("docs", "valdation")
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "error: unknown page 'valdation'")
    assert done.stderr.splitlines()[1].startswith("hint: did you mean validation?")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no ptys")
def test_a_page_goes_through_a_pager_on_a_terminal() -> None:
    """Laid out as wide as the terminal, without links that lead nowhere from there."""
    shown = on_a_terminal("docs", "overrides", PAGER="sed s/^/P/")
    assert "\x1b[" in shown
    plain = on_a_terminal("docs", "overrides", PAGER="sed s/^/P/", NO_COLOR="1").splitlines()
    assert all(line.startswith("P") and len(line) <= 81 and "\x1b[" not in line for line in plain) and len(plain) > 20
    assert "P" + "Without a file".center(80).rstrip() == plain[0].rstrip() and not re.search(r"\.md\)|```", "".join(plain))


def test_help_has_the_common_options_first_and_its_examples_are_commands() -> None:
    """Each example is read by the command that shows it."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)

    def commands(inner: Any) -> Iterator[Any]:
        for command in inner.commands.values():
            yield from commands(command) if hasattr(command, "commands") else [command]

    shown = 0
    for command in commands(group):
        context = typer.Context(command)
        assert not wide(command.epilog or "", 78)
        epilog = (command.epilog or "").replace("\\\n", "")
        for line in (line for line in epilog.splitlines() if "yarn-convert " in line):
            words = shlex.split(line.partition(">")[0])[1:]
            while words[0] in ("evaluate", "runtimes") or words[0] == command.name:
                words = words[1:]
            command.parse_args(typer.Context(command), words)
            shown += 1
        assert not re.search(r"\w-$", command.get_help(context), re.MULTILINE), "no word is cut at a hyphen"
        sections = [line for line in command.get_help(context).splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert sections[:2] == ["Arguments:", "Options:"] or "Arguments:" not in sections
    assert shown >= 10


def test_a_shell_completes_commands_options_and_choices() -> None:
    for words, found in (
        ("yarn-convert val", "validate"),
        ("yarn-convert m.gguf --sc", "--scale"),
        ("yarn-convert m.gguf --out g", "gguf"),
    ):
        env = os.environ | {"_YARN_CONVERT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        done = subprocess.run([sys.executable, "-m", "yarn_convert"], capture_output=True, text=True, env=env, check=False)
        assert found in done.stdout.split(), words


def test_where_an_error_comes_from_is_shown_on_request(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("[")
    plain, debug = (
        subprocess.run(
            [sys.executable, "-m", "yarn_convert", "inspect", "m"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
            env=os.environ | env,
        )
        for env in ({}, {"YARN_CONVERT_DEBUG": "1"})
    )
    assert plain.returncode == debug.returncode == 1 and debug.stderr.endswith(plain.stderr) and "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr and "JSONDecodeError" in debug.stderr, "with what led to it, though its error is raised from None"


def test_a_warning_of_another_package_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        show.warnings_as_lines()
        warnings.simplefilter("always")
        warnings.warn("the disk\n is small", UserWarning, stacklevel=1)
    assert capsys.readouterr() == ("", "warning: the disk is small\n")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes them")
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_stream_that_the_shell_closed_ends_nothing(make_model: MakeModel, tmp_path: Path, closed: str) -> None:
    make_model()
    words = f"{shlex.quote(sys.executable)} -m yarn_convert tiny --scale 4 --out gguf {closed}"
    done = subprocess.run(["/bin/sh", "-c", words], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0 and (tmp_path / "tiny-yarn-256.gguf").exists()
    assert done.stdout == ("" if "1" in closed else "tiny-yarn-256.gguf\n"), "what is for stderr goes nowhere else"


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[]"])
def test_a_broken_tokenizer_config_is_one_line(make_model: MakeModel, tmp_path: Path, content: bytes) -> None:
    (make_model() / "tokenizer_config.json").write_bytes(content)
    fails("tiny", "--scale", 4, says="tokenizer_config.json", cwd=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


def test_force_replaces_only_the_same_kind(make_model: MakeModel, tmp_path: Path) -> None:
    make_model()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dd.gguf").mkdir()
    fails("tiny", "--scale", 4, "-o", "file", "--force", says="is a file", cwd=tmp_path)
    fails("tiny", "--scale", 4, "--out", "gguf", "-o", "dd.gguf", "--force", says="is a folder", cwd=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dd.gguf", "file", "tiny"]
    assert (tmp_path / "file").read_text() == "mine"


def test_an_interrupted_edit_in_place_is_finished_not_repeated(make_model: MakeModel, tmp_path: Path) -> None:
    """Killed after its journal is written, the edit must not be applied twice: 64 -> 256, never -> 1024."""
    run(make_model(), "--method", "none", "--out", "gguf", "-o", tmp_path / "m.gguf")
    script = "from yarn_convert.targets import in_place; import os; in_place._finish = lambda *a: os._exit(9)\nfrom yarn_convert.cli import main; main()"
    words = [str(tmp_path / "m.gguf"), "--scale", "4", "--carry", "tensors", "--in-place"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    if "cannot insert" in done.stderr:
        pytest.skip("this file system cannot insert a range")
    assert done.returncode == 9
    fails("inspect", tmp_path / "m.gguf", says="interrupted")
    fails(*words, says="finished now")
    assert open_gguf(tmp_path / "m.gguf").get("llama.context_length") == 4 * CONTEXT


def test_ctrl_c_leaves_nothing_and_says_so(make_model: MakeModel, tmp_path: Path) -> None:
    make_model()
    script = (
        "from yarn_convert.targets import moving; import time\n"
        "def drip(*a): print('moving', flush=True); time.sleep(0.3); return 1\n"
        "moving.copy_range = drip\nfrom yarn_convert.cli import main; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, "tiny", "--scale", "4", "-q"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert "moving" in child.stdout.readline()
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert err.splitlines()[0] == "error: interrupted"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


def test_the_documented_help_is_the_real_one() -> None:
    """docs/cli.md is made by `python tools/make_cli_docs.py`."""
    from make_cli_docs import PAGE, page

    assert PAGE.read_text("utf-8") == page(), "run python tools/make_cli_docs.py"


def test_human_sizes() -> None:
    assert [show.human(n) for n in (0, 1023, 1024, 5 << 30, 3 << 40)] == ["0 B", "1023 B", "1.0 KiB", "5.0 GiB", "3.0 TiB"]


def test_a_config_json_is_its_folder_and_one_alone_is_for_a_plan(make_model: MakeModel, tmp_path: Path) -> None:
    model, alone = make_model(), tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_bytes((model / "config.json").read_bytes())
    plans = [
        run(given, "--scale", 4, "-o", "x", "--dry-run", cwd=tmp_path).stderr
        for given in (model, model / "config.json", alone / "config.json")
    ]
    plans = [re.sub(r", and [\d.]+ \w+ free", "", plan) for plan in plans]  # which another process changes meanwhile
    assert plans[0] == plans[1] and "21 tensors" in plans[0] and "no weights" not in plans[0]
    assert "there are no weights here" in plans[2]
    assert run(model / "config.json", "--scale", 4, "-o", "x", cwd=tmp_path).stdout == "x\n"
    fails(alone / "config.json", "--scale", 4, says="has no weights beside it", cwd=tmp_path)


def test_one_of_a_thing_is_no_plural(make_model: MakeModel) -> None:
    shown = run("inspect", make_model(layers=1, kv_heads=1)).stdout
    assert "1 layer, 4 heads of 16, 1 KV head\n" in shown
    assert [many(n, "copy", "copies") for n in (0, 1, 1024)] == ["0 copies", "1 copy", "1,024 copies"]


def test_a_context_is_read_as_people_write_it(make_model: MakeModel, tmp_path: Path) -> None:
    plan = json.loads(run(make_model(), "--context", "0.25k", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert (plan["context"], plan["scale"]) == (256, 4.0)
    done = run(tmp_path / "tiny", "--context", "32kk", cwd=tmp_path)
    assert done.returncode == 1
    assert "no number of tokens" in done.stderr


def test_inspect_shows_what_each_runtime_computes(make_model: MakeModel) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.5}
    model = make_model(config={"rope_scaling": scaling, "max_position_embeddings": 256})
    rows = {row["runtime"]: row for row in json.loads(run("inspect", model, "--runtimes", "--json").stdout)}
    assert len(rows) == 16
    assert rows["transformers-5"]["multiplier"] == 1.5
    assert rows["mlx-lm"]["ignores"] == ["rope_scaling.attention_factor"]
    assert rows["CTranslate2"]["refuses"]
    text = run("inspect", model, "--runtimes").stdout
    assert all(name in text for name in rows)
    assert max(map(len, text.splitlines())) <= 120
