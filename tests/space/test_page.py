"""The page in a real browser, over a Hub on loopback: every way through it, and every way that is closed.

`make test-space` runs these; they need gradio, playwright and Chromium. YARN_CONVERT_SHOTS names a folder for screenshots.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

from conftest import CONTEXT, MakeModel  # noqa: E402
from hub_server import Hub, serving  # noqa: E402

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
TOKEN = "hf_averysecrettokenthatmustnotappear"
SLOW = 60_000  # ms
SECONDS = 240  # until the page is there: on a busy machine its imports alone take a minute
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: the package chromium, or CHROMIUM names one")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, str]]:
    make: MakeModel = __import__("conftest").make_model._get_wrapped_function()(tmp_path_factory.mktemp("models"))
    model = make(shards=2)
    large = make("large", layers=3)
    evil = make("evil", config={"model_type": "<img src=x onerror=alert(1)>"})
    made = Hub({"some-org/tiny": model, "some-org/large": large, "gated-org/tiny": model, "some-org/evil": evil})
    made.repos["gated-org/tiny"].gated = True
    with serving(made) as endpoint:
        yield made, endpoint


@contextmanager
def space(endpoint: str, home: Path, token: str | None = TOKEN) -> Iterator[tuple[str, Path]]:
    """(The page's address, its log); `token` is whose Gradio takes for the visitor's where it runs on no Space."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_TOKEN": token or "",
    }  # fmt: skip
    log = home / "log"
    home.mkdir(exist_ok=True)
    with (
        open(log, "w") as out,
        subprocess.Popen([sys.executable, "app.py"], cwd=ROOT / "space", env=env, stdout=out, stderr=out) as process,
    ):
        try:
            for _ in range(4 * SECONDS):
                with socket.socket() as s:
                    if s.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, log.read_text()
                time.sleep(0.25)
            else:
                pytest.fail(f"the page is not there after {SECONDS} seconds")
            yield f"http://127.0.0.1:{port}", log
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def page_(hub: tuple[Hub, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with space(hub[1], tmp_path_factory.mktemp("space")) as (address, log):
        yield address, log


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visitor(browser: Any, page_: tuple[str, Path], request: pytest.FixtureRequest) -> Iterator[Any]:
    """A visitor's own browser, on the page; afterwards nothing went wrong in it, and no token is in the page's log."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 1000}} | getattr(request, "param", {}))
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("dialog", lambda d: (wrong.append(f"a dialog: {d.message}"), d.dismiss()))
    page.goto(page_[0])
    yield page
    shot(page, re.sub(r"\W+", "-", request.node.name))
    context.close()
    assert not wrong
    log = page_[1].read_text()
    assert TOKEN not in log and "mock-oauth" not in log and "Traceback" not in log, log


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("YARN_CONVERT_SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder, f"{name}.png")), full_page=True)


def look(page: Any, model: str) -> None:
    page.locator("#model textarea, #model input").fill(model)
    page.locator("#look").click()


def planned(page: Any, model: str = "some-org/tiny") -> None:
    look(page, model)
    page.locator("#plan").click(timeout=SLOW)
    expect(page.locator("#planned table")).to_be_visible(timeout=SLOW)


def signed_in(page: Any) -> None:
    page.get_by_text("Sign in with Hugging Face").click()
    expect(page.get_by_text(re.compile("Logout"))).to_be_visible(timeout=SLOW)


@pytest.mark.parametrize("name", ["some-org/tiny", "https://huggingface.co/some-org/tiny/tree/main", " hf.co/some-org/tiny"])
def test_a_model_is_shown_by_any_of_its_names(visitor: Any, name: str) -> None:
    look(visitor, name)
    expect(visitor.locator("#facts")).to_contain_text(f"{CONTEXT} tokens, trained to {CONTEXT}", timeout=SLOW)
    visitor.get_by_text("Which runtimes compute it as it is").click()
    expect(visitor.locator("#runtimes tr")).to_have_count(17)  # a row for each runtime, and the heads
    expect(visitor.locator("#runtimes")).to_contain_text("transformers-5")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("some-org/none", "or is privatecheck the spelling; this page sees no private ones"),
        ("gated-org/tiny", "gated-org/tiny is gatedaccept its licence on the Hub, then sign in above"),
        ("/etc/passwd", "is no name of a model on the Hub"),
        ("../tiny", "is no name of a model on the Hub"),
        ("", "is no name of a model on the Hub"),
        ("https://huggingface.co/datasets/some-org/tiny", "is no model's address on the Hub"),
        ("some-org/evil", "unknown model_type '<img src=x onerror=alert(1)>'"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line_and_a_hint(visitor: Any, name: str, says: str) -> None:
    """And a stranger's text is text: the fixture fails on a dialog."""
    look(visitor, name)
    expect(visitor.locator("#facts [role=alert]")).to_contain_text(says, timeout=SLOW)
    expect(visitor.locator("#plan")).not_to_be_visible()


def test_a_plan_says_what_would_be_written_and_by_whom_it_is_computed(visitor: Any) -> None:
    look(visitor, "some-org/tiny")
    visitor.locator("#by").get_by_label("context").click(timeout=SLOW)
    visitor.locator("#context textarea, #context input").fill("half a million")
    visitor.locator("#plan").click()
    expect(visitor.locator("#planned [role=alert]")).to_contain_text("no number of tokens", timeout=SLOW)
    visitor.locator("#context textarea, #context input").fill("256")
    visitor.locator("#plan").click()
    expect(visitor.locator("#planned")).to_contain_text(f"yarn, s = 4: {CONTEXT} → 256 tokens", timeout=SLOW)
    expect(visitor.locator("#planned")).to_contain_text("vllm")
    expect(visitor.locator("#planned")).to_contain_text("yarn-convert some-org/tiny --context 256 --method yarn --out safetensors")
    expect(visitor.locator("#curve")).to_be_visible()
    expect(visitor.locator("#publish")).to_be_disabled()


def test_two_lists_are_chosen_by_a_box(visitor: Any) -> None:
    look(visitor, "some-org/tiny")
    visitor.locator("#short label").click(timeout=SLOW)
    visitor.locator("#plan").click()
    expect(visitor.locator("#planned")).to_contain_text("--short base", timeout=SLOW)


def test_what_passed_is_published_by_a_copy_on_the_server(visitor: Any, hub: tuple[Hub, str]) -> None:
    pytest.importorskip("transformers")
    signed_in(visitor)
    planned(visitor)
    expect(visitor.locator("#publish")).to_be_disabled()
    visitor.locator("#prove").click()
    expect(visitor.locator("#proof .verdict")).to_have_text("The twin passed", timeout=3 * SLOW)
    assert "tiny-yarn-256" in visitor.frame_locator("#proof iframe").locator("h1").inner_text()
    expect(visitor.locator("#repo textarea, #repo input")).to_have_value("me/tiny-long")
    visitor.locator("#publish").click()
    expect(visitor.locator("#published a")).to_have_text("me/tiny-long", timeout=SLOW)
    repo = hub[0].repos["me/tiny-long"]
    assert repo.private
    assert {n for n in repo.at().files if n.endswith(".safetensors")} == {
        n for n in hub[0].repos["some-org/tiny"].at().files if n.endswith(".safetensors")
    }
    assert '"factor": 4.0' in repo.at().files["config.json"].data.decode()
    asked = [line for line in hub[0].log if line.startswith("GET") and line.endswith(".safetensors")]
    assert not asked, "headers are read by range, and no weights come here"
    assert "mock-oauth" not in visitor.content() + visitor.url + "".join(hub[0].log), "a token stands in headers alone"


def test_without_rights_nothing_is_published(visitor: Any, hub: tuple[Hub, str]) -> None:
    pytest.importorskip("transformers")
    signed_in(visitor)
    planned(visitor)
    visitor.locator("#prove").click()
    expect(visitor.locator("#proof .verdict")).to_have_text("The twin passed", timeout=3 * SLOW)
    visitor.locator("#repo textarea, #repo input").fill("somebody-else/tiny")
    visitor.locator("#publish").click()
    refused = visitor.locator("#published [role=alert]")
    expect(refused).to_contain_text("does not let you write to somebody-else/tiny", timeout=SLOW)
    expect(refused).to_contain_text("name a new repository of your own")
    assert "somebody-else/tiny" not in hub[0].repos


def test_who_is_not_signed_in_cannot_publish_and_sees_nothing_of_others(
    visitor: Any, browser: Any, page_: tuple[str, Path], hub: tuple[Hub, str]
) -> None:
    pytest.importorskip("transformers")
    signed_in(visitor)
    begun = len(hub[0].log)
    planned(visitor)
    assert {entry.token for entry in hub[0].log[begun:]} == {"mock-oauth-token-for-local-dev"}, "Gradio's, where it runs on no Space"
    context = browser.new_context()
    other = context.new_page()
    other.goto(page_[0])
    expect(other.get_by_text("Sign in with Hugging Face")).to_be_visible()
    assert other.locator("#facts").inner_text().strip() == ""
    before = len(hub[0].log)
    planned(other)
    other.locator("#prove").click()
    expect(other.locator("#proof .verdict")).to_have_text("The twin passed", timeout=3 * SLOW)
    expect(other.locator("#publish")).to_be_disabled()
    assert {entry.token for entry in hub[0].log[before:]} == {""}
    context.close()


def working(endpoint: str) -> list[str]:
    """The processes that work for visitors of the page that asks this Hub."""
    script = str(ROOT / "space" / "work.py")
    return [p.name for p in Path("/proc").glob("[0-9]*") if script in _text(p / "cmdline") and endpoint in _text(p / "environ")]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # of one that has ended
        return ""


def until(is_so: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.2)
    return is_so()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what runs")
def test_the_work_of_who_leaves_ends(visitor: Any, browser: Any, page_: tuple[str, Path], hub: tuple[Hub, str]) -> None:
    """And what is planned otherwise ends it, too."""
    planned(visitor)
    visitor.locator("#prove").click()
    expect(visitor.locator("#proof [role=status]")).to_be_visible(timeout=SLOW)
    assert working(hub[1])
    visitor.locator("#factor input").fill("8")
    expect(visitor.locator("#planned")).to_be_empty(timeout=SLOW)
    expect(visitor.locator("#prove")).not_to_be_visible()
    assert until(lambda: not working(hub[1]), 15)
    context = browser.new_context()
    other = context.new_page()
    other.goto(page_[0])
    planned(other)
    other.locator("#prove").click()
    expect(other.locator("#proof [role=status]")).to_be_visible(timeout=SLOW)
    context.close()
    assert until(lambda: not working(hub[1]), 30)


def test_two_visitors_at_once_have_each_their_own(visitor: Any, browser: Any, page_: tuple[str, Path]) -> None:
    context = browser.new_context()
    other = context.new_page()
    other.goto(page_[0])
    look(visitor, "some-org/tiny")
    look(other, "some-org/large")
    expect(other.locator("#facts")).to_contain_text("some-org/large", timeout=SLOW)
    expect(visitor.locator("#facts")).to_contain_text("some-org/tiny", timeout=SLOW)
    visitor.locator("#factor input").fill("2")
    for page in (visitor, other):
        page.locator("#plan").click()
    expect(visitor.locator("#planned")).to_contain_text(f"{CONTEXT} → {2 * CONTEXT} tokens", timeout=SLOW)
    expect(other.locator("#planned")).to_contain_text(f"{CONTEXT} → {4 * CONTEXT} tokens", timeout=SLOW)
    assert "some-org/large" not in visitor.content() and "some-org/tiny" not in other.content()
    context.close()


def test_nothing_of_the_page_is_an_api_and_nothing_is_recorded(visitor: Any, page_: tuple[str, Path]) -> None:
    told = visitor.request.get(f"{page_[0]}/gradio_api/info").json()
    assert [*told["named_endpoints"], *told["unnamed_endpoints"]] == ["/_check_login_status"], "which is the login button's"
    assert visitor.request.get(f"{page_[0]}/monitoring").status >= 400
    assert visitor.request.get(f"{page_[0]}/gradio_api/run-history/records").status >= 400


def test_all_can_be_done_by_keyboard_and_has_a_name(visitor: Any) -> None:
    """In the order in which it stands."""
    expect(visitor).to_have_title("yarn-convert: extend a model's context")
    visitor.get_by_role("textbox", name="Model on the Hub").fill("some-org/tiny")
    visitor.keyboard.press("Enter")
    expect(visitor.locator("#plan")).to_be_visible(timeout=SLOW)
    visitor.get_by_role("textbox", name="Model on the Hub").focus()
    reached = []
    while "Plan" not in reached and len(reached) < 12:
        visitor.keyboard.press("Tab")
        reached.append(
            visitor.evaluate("(e => e.innerText.trim() || e.ariaLabel || e.labels?.[0]?.innerText.split('\\n')[0])(document.activeElement)")
        )
    assert reached == [
        "Inspect",
        "Which runtimes compute it as it is\n▼",
        "factor",
        "context",
        "Factor s",
        "Method",
        "Short texts as before",
        "More\n▼",
        "Plan",
    ]
    visitor.keyboard.press("Enter")
    expect(visitor.locator("#planned table")).to_be_visible(timeout=SLOW)
    visitor.get_by_role("textbox", name="Repository").focus()


@pytest.mark.parametrize(
    "visitor", [{"viewport": {"width": 390, "height": 844}}, {"color_scheme": "dark"}], indirect=True, ids=["narrow", "dark"]
)
def test_it_can_be_read_on_a_telephone_and_at_night(visitor: Any) -> None:
    planned(visitor)
    visitor.get_by_text("Which runtimes compute it as it is").click()
    wide, window = visitor.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window, "nothing is wider than the screen"
    assert visitor.get_by_role("heading", name="yarn-convert").bounding_box()["height"] < 80, "its name stands on one line"
    for element in ("#facts td", "#facts th", "#runtimes .yes", "#factor [class*=info]", "#look", "#prove"):
        assert contrast(visitor, element) >= 4.5, element


def contrast(page: Any, element: str) -> float:
    """Of a text and what is behind it, as WCAG counts it; 4.5 is what texts have to have."""
    ink, paper, opacity = page.evaluate(
        "(name) => { const e = document.querySelector(name); let p = e; const of = x => getComputedStyle(x).backgroundColor;"
        " while (p && of(p) === 'rgba(0, 0, 0, 0)') p = p.parentElement;"
        " const s = getComputedStyle(e); return [s.color, p ? of(p) : 'rgb(255, 255, 255)', Number(s.opacity)]; }",
        element,
    )
    front, back = ([float(x) for x in re.findall(r"[\d.]+", c)[:3]] for c in (ink, paper))
    seen = [opacity * f + (1 - opacity) * b for f, b in zip(front, back, strict=True)]
    light = sorted(sum(w * linear(x / 255) for w, x in zip((0.2126, 0.7152, 0.0722), c, strict=True)) for c in (seen, back))
    return (light[1] + 0.05) / (light[0] + 0.05)


def linear(x: float) -> float:
    return x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4
