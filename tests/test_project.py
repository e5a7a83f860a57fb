"""What a newcomer meets: links that lead somewhere, forms and workflows that parse and name what is there, pins for every extra."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_site import PAGES, as_page
from readme_hook import as_description

from yarn_convert import families
from yarn_convert.formats.files import DOCS, pages

ROOT = Path(__file__).parents[1]
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]-*.yml"))
WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings as GitHub makes them."""
    heads = [re.sub(r"[^\w\- ]", "", head.strip().lower()) for head in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)]
    return {head.replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_relative_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_a_link_of_the_readme_is_moved_to_where_its_page_lies_on_the_site() -> None:
    text = "[a](docs/design.md#to-add-a-family) [b](../README.md#evaluate) [c](CONTRIBUTING.md) [d](https://x.org/docs/y) ![e](docs/p.svg)"
    moved = "[a](design.md#to-add-a-family) [b](index.md#evaluate) [c](contributing.md) [d](https://x.org/docs/y) ![e](p.svg)"
    assert as_page(text) == moved


def test_a_link_of_the_readme_leads_somewhere_on_the_page_of_the_package() -> None:
    text = "[a](docs/d.md#b) [c](#d) [e](https://x.org) ![f](docs/p.svg)"
    assert as_description(text) == "a [c](#d) [e](https://x.org) f"
    there = "[a](https://g.h/n/docs/d.md#b) [c](#d) [e](https://x.org) ![f](https://g.h/n/docs/p.svg?raw=true)"
    assert as_description(text, "https://g.h/n") == as_description(text, "https://g.h/n/") == there
    readme = (ROOT / "README.md").read_text("utf-8")
    for url, links in (("", 0), ("https://g.h/n", len(re.findall(r"\]\(docs/", readme)))):
        shown = as_description(readme, url)
        assert not re.search(r"\]\((?!https:|#)", shown) and shown.count("https://g.h/n/docs/") == links
    assert 'path = "tools/readme_hook.py"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_every_page_has_its_place_on_the_site() -> None:
    def named(entry: Any) -> list[str]:
        return [entry] if isinstance(entry, str) else [n for e in (entry.values() if isinstance(entry, dict) else entry) for n in named(e)]

    nav = named(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(nav) == sorted([*PAGES.values(), *(p.name for p in (ROOT / "docs").glob("*.md"))])


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.svg")), ids=lambda p: p.name)
def test_a_picture_has_a_ground_of_its_own_for_dark_pages(picture: Path) -> None:
    """Its first shape is opaque white and as large as the whole: else black words stand on a dark page."""
    text = picture.read_text("utf-8")
    width, height = re.search(r'viewBox="0 0 (\d+) (\d+)"', text).groups()
    first, style = re.search(r'<path d="([^"]+)" style="([^"]+)"', text).groups()
    assert style.strip() == "fill: #ffffff" and {(width, "0"), ("0", height), (width, height)} <= set(re.findall(r"(\d+) (\d+)", first))


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_a_form_asks_for_what_is_there(form: Path) -> None:
    said = yaml.safe_load(form.read_text("utf-8"))
    assert said.keys() == {"name", "description", "body"} | ({"labels"} & said.keys())
    ids = [part["id"] for part in said["body"]]
    assert len(set(ids)) == len(ids) and all(part["attributes"]["label"] for part in said["body"])
    assert {part["type"] for part in said["body"]} <= {"textarea", "input", "checkboxes"}
    assert_there(form.read_text("utf-8"))


def assert_there(text: str) -> int:
    """Each command line in backticks names a command and options of it that docs/cli.md has (tests/test_cli.py holds that against --help).
    How many there are."""
    pages = {first: more for first, _, more in (s.partition("\n") for s in (ROOT / "docs" / "cli.md").read_text("utf-8").split("\n## "))}
    lines = [line.split() for line in re.findall(r"`(yarn-convert[^`\n]*)`", text)]
    for words in lines:
        n = max(n for n in (1, 2, 3) if " ".join(words[:n]) in pages)
        named = " ".join(words[:n])
        word = any(re.fullmatch("[a-z]+", w) for w in words[n : n + 1])
        assert not word or not any(page.startswith(f"{named} ") for page in pages), f"{named} has no {words[n]}"
        for option in (w for w in words if w.startswith("--")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", pages[named]), f"{named} has no {option}"
    return len(lines)


def test_what_stands_beside_other_tools_is_there() -> None:
    """The table's commands and options exist, and so does what each number in brackets leads to."""
    text = (ROOT / "docs" / "expectations.md").read_text("utf-8")
    assert assert_there(text) >= 25
    table, looked_at = text.split("## Looked at")
    assert set(re.findall(r"\[(\d+)\]", table)) == set(re.findall(r"^(\d+)\. .*https://", looked_at, re.MULTILINE))
    rows = [line.count(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) >= 25 and set(rows) == {2}, "a row has three cells"
    for wrong in ("yarn-convert valdate", "yarn-convert evaluate rule", "yarn-convert convert --scael 4", "yarn-convert recipe --scale"):
        with pytest.raises(AssertionError):
            assert_there(f"`{wrong}`")


def test_what_the_workflow_runs_is_there() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    files = re.findall(r"(?:tests|tools|\.ci)/[\w./]+", " ".join(step.get("run", "") for step in steps))
    assert ".ci/run" in files and "tools/smoke.py" in files and all((ROOT / name).is_file() for name in files)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    said = re.findall(r"Python :: (3\.\d+)", project)
    assert jobs["wheel"]["strategy"]["matrix"]["python"] == said and f'requires-python = ">={said[0]}"' in project


def test_a_tiny_model_is_extended_by_the_command_alone(tmp_path: Path) -> None:
    """What the workflow runs of a wheel, here of these sources."""
    code = f"import runpy, sys; sys.argv = ['yarn-convert', *sys.argv[1:]]; sys.path.insert(0, {str(ROOT)!r}); runpy.run_module('yarn_convert', run_name='__main__')"
    (tmp_path / "yarn-convert").write_text(f"#!{sys.executable}\n{code}\n")
    (tmp_path / "yarn-convert").chmod(0o755)
    command = [sys.executable, str(ROOT / "tools" / "smoke.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert done.returncode == 0 and "read back" in done.stdout, done.stderr


def test_a_page_that_is_named_to_users_is_there() -> None:
    """By `page`, whose command finds it in a wheel, too: nobody else has a docs/ of ours."""
    named, plain = set(), []
    for path in (ROOT / "yarn_convert").rglob("*.py"):
        text = path.read_text("utf-8")
        named |= set(re.findall(r"""\bpage\(["']([\w.]+)["']\)""", text))
        tree = ast.parse(text)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        said = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and isinstance(node.body[0], ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said]
        plain += [f"{path.name}: {node.value}" for node in texts if re.search(r"docs/\w+\.md", node.value) and "ggml" not in node.value]
    assert not plain
    assert named >= {"formats", "validation"} and named <= pages().keys()
    included = re.search(r"force-include = \{(.+)\}", (ROOT / "pyproject.toml").read_text("utf-8"))
    assert included and f'"docs" = "yarn_convert/{DOCS.name}"' in included[1] and (ROOT / "docs") == DOCS


def test_what_the_image_copies_is_let_in() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == let_in and all((ROOT / name).exists() for name in let_in)


def test_the_readme_counts_the_model_types_that_convert() -> None:
    ones = ["", *["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]]
    tens = ["", "", *["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]]
    n = len({f.model_type for f in families.FAMILIES})
    assert f" {tens[n // 10]}{'-' * bool(n % 10)}{ones[n % 10]} model types" in (ROOT / "README.md").read_text("utf-8")
