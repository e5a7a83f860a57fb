"""The visitors' processes, and what the Space says of itself: without a browser.

What each process does is played by a few lines of Python; how it is started, heard and ended is the page's own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

SPACE = Path(__file__).parents[2] / "space"
TOKEN = "hf_averysecrettokenthatmustnotappear"
ASKED = {"command": "yarn-convert inspect org/name"}
Play = Callable[[str], Iterator[str | dict[str, Any]]]


@pytest.fixture
def visitors(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SPACE))
    return __import__("visitors")


@pytest.fixture
def play(visitors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """A visitor's work is what these lines of Python do."""
    monkeypatch.setattr(visitors, "BEAT", 0.1)

    def played(code: str) -> Iterator[str | dict[str, Any]]:
        script = tmp_path / "work.py"
        script.write_text(f"import json, os, subprocess, sys, tempfile, time\nput = lambda **x: print(json.dumps(x), flush=True)\n{code}\n")
        monkeypatch.setattr(visitors, "WORK", script)
        return visitors.do("look", TOKEN, ASKED)  # type: ignore[no-any-return]

    return played


def runs(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what runs")
def test_of_a_visitor_who_leaves_nothing_stays(play: Play) -> None:
    """Neither the process, nor what it has started, nor a file."""
    said = play(
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "put(say=json.dumps([os.getpid(), child.pid, os.getcwd(), tempfile.mkdtemp(), os.environ['HF_HOME']]))\ntime.sleep(60)"
    )
    lines = iter(said)
    found = next(line for line in lines if line != "starting")
    pid, child, own, *folders = json.loads(str(found))
    assert runs(pid) and runs(child)
    assert next(lines) == found, "said again while it works, so that who has left is noticed"
    assert all(Path(f).is_relative_to(own) for f in folders), "all in the visitor's own folder"
    said.close()  # type: ignore[attr-defined]
    for _ in range(100):
        if not (runs(pid) or runs(child)):
            break
        time.sleep(0.05)
    assert not runs(pid) and not runs(child)
    assert not Path(own).exists()


@pytest.mark.parametrize(
    ("code", "limits", "says"),
    [
        ("time.sleep(60)", {"SECONDS": {"look": 0}}, "this took more than 0 seconds here"),
        ("open('big', 'wb').write(bytes(2 << 20)); time.sleep(60)", {"DISK": 1 << 20}, "have more than 1 MiB"),
        ("os.kill(os.getpid(), 9)", {}, "the memory of this page did not suffice"),
        ("sys.exit('no')", {}, "a reason of this page's own"),
        ("put(error='it is gated', hint='sign in')", {}, "it is gated"),
    ],
)
def test_what_goes_wrong_is_one_line(
    play: Play, visitors: Any, monkeypatch: pytest.MonkeyPatch, code: str, limits: dict[str, Any], says: str
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(visitors, name, value)
    with pytest.raises(visitors.Refused, match=re.escape(says)) as e:
        list(play(code))
    assert e.value.hint in ("sign in", "on your machine: yarn-convert inspect org/name")


def test_a_file_with_holes_takes_no_room(play: Play, visitors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the headers of a GGUF of a terabyte, which stand in a file of its length."""
    monkeypatch.setattr(visitors, "DISK", 1 << 20)
    said = list(play("f = open('big', 'wb'); f.truncate(1 << 40); time.sleep(0.5); put(answer={})"))
    assert said[-1] == {}


def test_a_process_has_its_visitors_token_and_no_other_secret(
    play: Play, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the token is in no command line, which every process may read, nor in what the page prints of a fault."""
    monkeypatch.setenv("HF_TOKEN", "hf_theownersown")
    monkeypatch.setenv("OAUTH_CLIENT_SECRET", "oauth")
    monkeypatch.setenv("SOME_API_KEY", "key")
    code = "put(answer={'env': dict(os.environ), 'line': open('/proc/self/cmdline').read() if os.path.exists('/proc') else ''})"
    said = list(play(code))[-1]
    assert isinstance(said, dict)
    assert said["env"]["HF_TOKEN"] == TOKEN
    assert not {"hf_theownersown", "oauth", "key"} & set(said["env"].values())
    assert TOKEN not in said["line"]
    with pytest.raises(Exception, match="a reason of this page's own"):
        list(play("raise SystemExit(f'403 for {os.environ[\"HF_TOKEN\"]}')"))
    printed = "".join(capsys.readouterr())
    assert "look: 403 for …" in printed and TOKEN not in printed


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow more than they are told")
def test_a_process_has_no_more_memory_than_its_own() -> None:
    code = f"import sys; sys.path[:0] = [{str(SPACE)!r}]; import work; work.limited(1 << 30); bytearray(2 << 30)"
    env = os.environ | {"PYTHONPATH": str(SPACE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1 and done.stderr.rstrip().endswith("MemoryError")


def test_the_spaces_own_settings() -> None:
    """As the Hub documents them (spaces-config-reference, spaces-oauth)."""
    said = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    required = dict(re.findall(r"^([\w-]+)(?:\[.*\])?==(.+)$", (SPACE / "requirements.txt").read_text(), re.MULTILINE))
    assert said["sdk"] == "gradio" and said["sdk_version"] == required["gradio"] == version("gradio")
    assert re.fullmatch(r"3\.\d+", said["python_version"]), "a text: 3.10 without quotes is the number 3.1"
    assert (SPACE / said["app_file"]).is_file()
    assert len(said["short_description"]) <= 60
    assert said["hf_oauth"] is True
    assert set(said["hf_oauth_scopes"]) == {"gated-repos", "contribute-repos"}, "no right over what the page has not made"
