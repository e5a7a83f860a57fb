"""The HTML report: whatever `validate` returned becomes one page that needs nothing else and says it as it is."""

import math
import re
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from yarn_convert.compute.pages import short_number
from yarn_convert.errors import UsageError
from yarn_convert.validation.judging import within
from yarn_convert.validation.report import CEILING, FLOOR, drawable, html_report

VOID = {"meta", "br", "hr", "img", "input", "link"}
NAN, INF = math.nan, math.inf


def window(start: int, end: int, nmse: float = 3.25e-12, drift: int | None = None) -> dict[str, Any]:
    return {"start": start, "end": end, "max_abs": 4.5e-5, "nmse": nmse, "kl": nmse, "kl_max": 2 * nmse, "top1": 1.0, "drift": drift}


def study(kind: str) -> dict[str, Any]:
    tolerance = {"nmse": 2e-6, "kl": 2e-6, "measured": "5e-10 was seen"}
    run = {
        "runtime": "llama.cpp", "predicted": "", "version": "0.3.36", "seconds": 4.5, "device": "cpu", "compared": "logits",
        "verdict": "passed", "layer": "", "why": "", "windows": [window(0, 1), window(1, 64), window(64, 6000)],
        "tolerance": {**tolerance}, "blind_to": [],
    }  # fmt: skip
    wrong = {"name": "no scaling", "told_apart": True, "from": 1729, "windows": [window(0, 64, 0.125, 1)]}
    reference = {
        "device": "Some GPU", "dtype": "float32", "offloaded": False, "peak_device_bytes": 3 << 30, "torch": "2.13.0", "transformers": "5.23.0",
        "seconds": 2.5, "tokens_per_second": 2400.4,
    }  # fmt: skip
    return {"kind": kind, "tokens": 6000, "reference": reference, "tolerance": tolerance, "wrong_recipes": [wrong], "runtimes": [run]}


def result() -> dict[str, Any]:
    table = {"inv_freq": [1.0, 0.1, 0.0025, 0.00025], "multiplier": 1.138629436, "context": 8192}
    recipe = {"method": "yarn", "rope_theta": 10000.0, "rotary_dim": 8, "original_context": 2048, "params": {"factor": 4.0}}
    return {
        "model": "some/model", "format": "gguf", "dtype": "F32",
        "intention": {"recipe": recipe, "context": 8192, "origin": "as the manifest says"},
        "files": {"m.gguf": {"bytes": 1234567, "sha256_tree": "ab" * 32, "modified": "2026-01-01T00:00:00+00:00"}},
        "recipe": {
            "verdict": "passed", "reader": "llama.cpp", "why": "", "layer": "", "intended": table, "ignored": [],
            "readers": {"llama.cpp": "", "other": "it ignores the factor"}, "decoded": {**table, "multiplier": 1.138629437}, "max_error": 5.5e-8,
        },
        "weights": {"verdict": "passed", "how": "61 tensors byte-identical", "why": "", "different": []},
        "tokenizer": {"verdict": "passed", "why": ""},
        "studies": [study("real"), study("twin")],
        "missing": [{"name": "vllm", "add": "yarn-convert runtimes add vllm", "note": "3.4 GB"}],
        "verdict": "passed", "reasons": [], "created": "2026-01-01T00:00:00+00:00",
        "versions": {"python": "3.11.7"}, "hardware": {"system": "Linux x86_64", "cores": 2},
    }  # fmt: skip


class Page(HTMLParser):
    """What a browser would see: `text`, every tag with its attributes, and the tags that do not pair up."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += "" if self.open[-1:] == ["style"] else f" {' '.join(data.split())} "

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def plain() -> str:
    """The page of a result in which everything is as it should be."""
    return html_report(result(), "yarn-convert validate some/model --html 'a b.html'")


def page(r: dict[str, Any], command: str = "x") -> Page:
    found = Page(html_report(r, command))
    assert not found.unbalanced and not found.open
    return found


def test_the_page_has_the_verdict_and_the_numbers(plain: str) -> None:
    p = Page(plain)
    assert not p.unbalanced and not p.open
    text = " ".join(p.text.split())
    said = [
        "some/model: ✓ passed", "8,192 tokens of context, as the manifest says", "θ = 10,000, 8 rotated dimensions, L = 2,048 tokens, factor = 4.",
        "1.13862944", "5.5e-08", "it ignores the factor", "61 tensors byte-identical", "64 … 5,999", "3.25e-12", "0.3.36",
        "no scaling yes 1,729 1.25e-01 6.25e+04", "5e-10 was seen", "Some GPU", "3.0 GiB", "2,400", "yarn-convert runtimes add vllm", "3.11.7",
        "Linux x86_64", "yarn-convert validate some/model --html 'a b.html'",
    ]  # fmt: skip
    assert [s for s in said if s not in text] == []
    assert p.count("svg") == 3
    assert "✗" not in text


def test_the_plots_show_each_curve_and_their_text_is_text(plain: str) -> None:
    text = Page(plain).text
    for label in ("intended", "decoded by llama.cpp", "wrong: no scaling", "L = 2,048", "L′ = 8,192", "NMSE", "mean KL, nats", "1/4"):
        assert label in text
    assert re.findall(r"10⁻[⁰¹²³⁴⁵⁶⁷⁸⁹]+", text)


def test_a_failure_is_said_with_its_reasons_and_its_rows_are_marked() -> None:
    r = result() | {"verdict": "failed", "reasons": ["llama.cpp, twin: it computes another recipe"]}
    run = r["studies"][1]["runtimes"][0]
    run |= {"verdict": "failed", "layer": "table", "why": "it computes another recipe", "predicted": "it ignores betas"}
    run["windows"][2] = window(64, 6000, 0.5, 77)
    p = page(r)
    text = " ".join(p.text.split())
    assert "some/model: ✗ failed" in text and "llama.cpp, twin: it computes another recipe" in text
    assert "✗ 64 … 5,999 4.50e-05 5.00e-01 5.00e-01 1.00e+00 1 77" in text
    assert "it computes another recipe (table)" in text and "it ignores betas" in text
    assert sum(attrs.get("class") == "beyond" for tag, attrs in p.tags if tag == "tr") == 1


EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>$\\frac$"  # the last is TeX, which a plot must not set


def test_what_a_file_says_is_text_and_never_markup(plain: str) -> None:
    clean, r = Page(plain), result()
    r |= {"model": EVIL, "reasons": [EVIL], "verdict": "failed"}
    r["recipe"] |= {"why": EVIL, "readers": {EVIL: EVIL}, "reader": EVIL, "ignored": [EVIL]}
    r["weights"] |= {"different": [EVIL], "how": EVIL, "why": EVIL}
    r["tokenizer"] |= {"why": EVIL}
    r["intention"]["recipe"]["params"] = {EVIL: EVIL}
    r["missing"] = [{"name": EVIL, "add": EVIL, "note": EVIL}]
    r["versions"], r["hardware"] = {EVIL: EVIL}, {EVIL: EVIL}
    for s in r["studies"]:
        s["wrong_recipes"][0]["name"] = s["tolerance"]["measured"] = s["reference"]["device"] = EVIL
        s["runtimes"][0] |= {"runtime": EVIL, "why": EVIL, "predicted": EVIL, "version": EVIL, "device": EVIL, "layer": EVIL}
    p = page(r, EVIL)
    assert p.count("script") == p.count("img") == 0
    assert {tag for tag, _ in p.tags} <= {tag for tag, _ in clean.tags} | {"ul", "li", "br"}
    assert p.text.count("alert(1)") > 30
    assert not any(name.startswith("on") for _, attrs in p.tags for name in attrs)


def test_the_page_needs_nothing_else(plain: str) -> None:
    assert "http:" not in plain and "https:" not in plain and "@import" not in plain
    p = Page(plain)
    assert p.count("script") == p.count("link") == p.count("img") == 0
    links = [attrs[name] or "" for _, attrs in p.tags for name in ("href", "src", "xlink:href") if name in attrs]
    assert links and all(link.startswith("#") for link in links)


def test_ids_are_unique_and_every_reference_meets_one_of_its_own_plot(plain: str) -> None:
    ids = [attrs["id"] for _, attrs in Page(plain).tags if "id" in attrs]
    assert len(ids) > 100 and len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(|href=")#([^")]+)', plain)
    assert used and set(used) <= set(ids)
    assert {str(i).split("-")[0] for i in ids} == {"recipe", "study"}
    for svg in re.findall(r"<svg.*?</svg>", plain, re.DOTALL):
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_the_same_result_gives_the_same_page(plain: str) -> None:
    assert html_report(result(), "yarn-convert validate some/model --html 'a b.html'") == plain


def test_plots_take_the_colour_of_the_text(plain: str) -> None:
    assert "currentColor" in plain and "#010203" not in plain


# -- what may be missing ----------------------------------------------------------------------------------------------


def test_a_runtime_that_failed_before_it_computed_anything() -> None:
    r = result()
    failed = {"runtime": "mlx-lm", "predicted": "", "verdict": "failed", "windows": [], "layer": "runtime", "why": "killed by signal 9"}
    failed |= {"tolerance": r["studies"][0]["tolerance"], "blind_to": []}
    r["studies"][0]["runtimes"].append(failed)
    p = page(r)
    assert "killed by signal 9" in p.text and p.count("svg") == 3
    r["studies"][0] |= {"runtimes": [failed], "wrong_recipes": []}
    assert page(r).count("svg") == 2  # axes without a curve say nothing


def test_a_file_that_its_reader_refuses() -> None:
    r = result()
    del r["recipe"]["decoded"], r["recipe"]["max_error"]
    r["recipe"] |= {"verdict": "failed", "why": "refuses the file: no such type", "layer": "table"}
    p = page(r)
    assert "refuses the file: no such type" in p.text
    assert (
        "intended" in p.text
        and "decoded by llama.cpp" in p.text
        and "Below: relative error" not in p.text
        and "two roundings" not in p.text
    )


def test_no_study_no_runtime_no_weights() -> None:
    r = result() | {"studies": [], "missing": [], "verdict": "inconclusive", "reasons": ["no runtime computed anything"]}
    r["weights"] = {"verdict": "unchecked", "how": "", "why": "no base is given", "different": []}
    p = page(r)
    text = " ".join(p.text.split())
    assert (
        "? inconclusive" in text
        and "no runtime computed anything" in text
        and "? unchecked no base is given" in text
        and p.count("svg") == 1
    )
    r["studies"] = [{**study("twin"), "runtimes": []}]
    r["studies"][0]["wrong_recipes"][0] |= {"windows": [], "told_apart": False, "from": None}
    text = " ".join(page(r).text.split())
    assert "No runtime was run." in text and "no scaling no – – –" in text


@pytest.mark.parametrize("value", [NAN, INF, None, 0.0, 5e-324, 1e300])
def test_a_value_that_no_logarithm_has_is_drawn_and_said(value: float | None) -> None:
    r = result()
    for w in r["studies"][0]["runtimes"][0]["windows"] + r["studies"][0]["wrong_recipes"][0]["windows"]:
        w |= {"nmse": value, "kl": value, "kl_max": value, "max_abs": value}
    r["studies"][0]["wrong_recipes"][0] |= {"told_apart": False, "from": None}
    r["recipe"]["decoded"] |= {"inv_freq": [value, 0.0, NAN, INF], "multiplier": NAN}
    p = page(r)
    assert f" {short_number(value, '.2e')} " in p.text
    for tag, attrs in p.tags:
        assert not re.search(r"\b(nan|inf)\b", attrs.get("d") or "", re.IGNORECASE), tag


def test_what_is_drawn_is_within_the_axes() -> None:
    assert drawable([0.0, 1e-20, 0.5, INF, -INF, NAN, None]).tolist() == [FLOOR, FLOOR, 0.5, CEILING, CEILING, CEILING, CEILING]


def test_a_decoded_table_of_another_length() -> None:
    r = result()
    r["recipe"]["decoded"]["inv_freq"] = [1.0, 0.5]
    r["recipe"]["max_error"] = None
    assert page(r).count("svg") == 3


def test_a_recipe_over_a_recipe_and_lists_of_numbers() -> None:
    r = result()
    recipe = r["intention"]["recipe"]
    linear = {**recipe, "method": "linear", "params": {"factor": 2.0}}
    r["intention"]["recipe"] = {**recipe, "method": "longrope", "params": {"long_factor": [1.5] * 4}, "inner": linear}
    assert "long_factor = 4 numbers" in page(r).text and "Over this recipe:" in page(r).text and "factor = 2" in page(r).text


def test_a_lone_surrogate_in_a_name_can_be_written() -> None:
    assert "name?" in html_report(result() | {"model": "name\ud800"}, "x").encode("utf-8").decode()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), ("", "–"), ("cpu", "cpu"), (True, "yes"), (False, "no"), (16384, "16,384"), (NAN, "NaN"), (INF, "∞"), (-INF, "−∞"), (0.0, "0"), (2e-6, "2e-06")],
)  # fmt: skip
def test_numbers_are_for_people(value: Any, text: str) -> None:
    assert short_number(value) == text


@pytest.mark.parametrize(
    ("nmse", "kl", "fits"),
    [(1e-6, 1e-6, True), (2e-6, 2e-6, True), (3e-6, 0.0, False), (0.0, 3e-6, False), (NAN, 0.0, False), (None, 0.0, False)],
)
def test_a_window_is_within_when_both_of_its_values_are(nmse: float, kl: float, fits: bool) -> None:
    assert within({"nmse": nmse, "kl": kl}, {"nmse": 2e-6, "kl": 2e-6}) is fits


def test_without_its_packages_the_page_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.style", raising=False)
    with pytest.raises(UsageError) as e:
        html_report(result(), "x")
    assert e.value.message == "a report or plot needs matplotlib" and "yarn-convert[validate]" in e.value.hint


def test_the_user_s_matplotlib_settings_are_left_alone() -> None:
    import matplotlib

    with matplotlib.rc_context({"axes.titlesize": 31}):
        before = dict(matplotlib.rcParams)
        html_report(result(), "x")
        assert dict(matplotlib.rcParams) == before
