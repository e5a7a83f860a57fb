"""What commands print fits the terminal, says the same as in a pipe, and its commands can still be copied."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import MakeModel, wide

from yarn_convert import overrides
from yarn_convert.cli import entry, folding
from yarn_convert.cli.app import app
from yarn_convert.cli.folding import Whole, command, fold, shell
from yarn_convert.cli.show import overrides_lines, write
from yarn_convert.compute.tables import columns
from yarn_convert.options import Recipe

Print = Callable[..., str]


@pytest.fixture
def said(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Print:
    """said(80, "inspect", "m") -> what the command line prints in 80 columns, said(None, …) into a pipe, said(80, lines) the lines."""

    def printed(room: int | None, *words: Any) -> str:
        monkeypatch.delenv("COLUMNS", raising=False)
        if room:
            monkeypatch.setenv("COLUMNS", str(room))
        if isinstance(words[0], list):
            write(*words[0])
        else:
            with pytest.raises(SystemExit):
                entry.main([str(word) for word in words])
        shown = capsys.readouterr()
        return str(shown.err + shown.out)

    return printed


def same(text: str) -> list[str]:
    """The words, wherever lines end."""
    return re.sub(r" \\\n", " ", text).split()


COMMANDS = {
    "plan": "tiny --scale 4 --dry-run",
    "steps": "tiny --scale 4 --out gguf -o a-longer-name-of-an-output-yarn.gguf",
    "inspect": "inspect tiny",
    "runtimes": "runtimes",
    "overrides": "overrides tiny --scale 4 --method ntk-by-parts",
    "repair": "repair tiny --scale 4 --dry-run",
    "hint": "validate a-folder-that-is-nowhere --like tiny",
    "choices": "tiny --method yarm",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_fits_its_terminal_and_says_the_same_as_in_a_pipe(
    name: str, said: Print, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(head_dim=128, heads=2, kv_heads=2)
    monkeypatch.chdir(tmp_path)
    words = COMMANDS[name].split()
    again = ["--force"] if name == "steps" else []
    whole, narrow, broad = said(None, *words), said(80, *words, *again), said(120, *words, *again)
    assert not wide(narrow, 80) and not wide(broad, 120)
    assert wide(whole, 80) and len(narrow.splitlines()) > len(broad.splitlines()) - (name == "choices"), "some lines have to be folded"
    assert same(narrow) == same(whole) == same(broad)


def test_a_terminal_of_one_column_ends_nothing(said: Print) -> None:
    assert "yarn" in said(1, "methods") and said(1, "methods") == said(40, "methods") != said(80, "methods") == said(None, "methods")


def test_a_table_s_cells_are_all_there(said: Print) -> None:
    head = ["method", *(f"{n:,}" for n in range(4096, 40960, 4096))]
    body = [[name, *(f"{n}.5 ± {n}" for n in range(9))] for name in ("none", "yarn:4")]
    table = said(80, columns(head, body, 80))
    assert not wide(table) and wide(said(None, columns(head, body)))
    for row in (head, *body):
        below = [line.split()[1:] for line in table.splitlines() if line.startswith(f"{row[0]} ")]
        assert [word for line in below for word in line] == " ".join(row[1:]).split() and len(below) == 2


def test_a_recipe_s_lists_fit(said: Print, tmp_path: Path) -> None:
    factors = tmp_path / "factors.csv"
    factors.write_text("\n".join(str(1 + 1 / (3 + i)) for i in range(16)))
    texts = [said(room, "recipe", factors) for room in (80, 120)]
    assert [max(map(len, text.splitlines())) <= room for text, room in zip(texts, (80, 120), strict=True)] == [True, True]
    assert texts[0] != texts[1] and same(texts[0]) == same(texts[1])


def test_a_command_in_80_columns_is_the_same_to_its_shell_and_to_python(make_model: MakeModel) -> None:
    """As it stands in the terminal, given to a shell, which prints its words; to Python's parser."""
    found = overrides(str(make_model("it's tiny")), Recipe(scale=4.0, attention_factor=1.3))
    printed = "\n".join(fold(overrides_lines(found, 80), 80))
    seen = 0
    for r in found.runtimes:
        text = r.command or r.instead
        shown = "\n".join(command(text, 80, r.language if r.command else "shell"))
        assert shown in printed
        seen += "\n" in shown
        if r.command and r.language == "python":
            assert ast.dump(ast.parse(shown)) == ast.dump(ast.parse(text))
        else:
            words = [subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True).stdout for line in (shown, text)]
            assert words[0] == words[1] != b""
    assert seen > 4


@pytest.mark.parametrize(
    ("line", "folded"),
    [
        ("note      it is not here; to add it: yarn-convert runtimes add vllm", ["note      it is not here; to add it:", "          yarn-convert runtimes add vllm"]),
        ("  a reason of a file that is long", ["  a reason of a file that is long"]),
        ("  a reason of a file that is longer than a line is", ["  a reason of a file that is longer than a", "    line is"]),
        ("output    a/very/long/path/of/an/output/that/is.gguf (1 GiB)", ["output    a/very/long/path/of/an/output/that/is.gguf", "          (1 GiB)"]),
        ("tokenizer passed: it is the base's, and more", ["tokenizer passed: it is the base's, and", "          more"]),
        ("hint: see yarn-convert inspect a/very/long/path/of/an.gguf; run again", ["hint: see", "    yarn-convert inspect \\", "        a/very/long/path/of/an.gguf; run", "    again"]),
        ("an output of yarn-convert says in it what it is and is", ["an output of yarn-convert says in it what", "    it is and is"]),
    ],
)  # fmt: skip
def test_a_line_is_broken_where_a_reader_expects_it(line: str, folded: list[str]) -> None:
    assert list(fold([line], 42)) == folded
    assert list(fold([Whole(line)], 42)) == list(fold([line], None)) == [line]


def test_a_shell_s_words_stay_whole() -> None:
    assert shell("x 'a b c' --one 'd e' --two", 16) == ["x 'a b c' \\", "    --one \\", "    'd e' \\", "    --two"]


def test_a_table_that_is_too_wide_goes_on_below() -> None:
    head, body = ["m", "aa", "bb", "cc"], [["none", "1", "2", "3"]]
    assert columns(head, body, 12) == ["m     aa  bb", "none   1   2", "", "m     cc", "none   3"]
    assert columns(head, body) == columns(head, body, 16) == ["m     aa  bb  cc", "none   1   2   3"]


def test_the_words_that_begin_a_command_are_those_of_the_command_line() -> None:
    group: Any = typer.main.get_command(app)
    assert set(folding.COMMANDS.split("|")) == set(group.commands)
