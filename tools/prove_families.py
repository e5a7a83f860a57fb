"""What passes for each row of the table of families, measured: its tests, by what they prove. `make families` runs it.

python tools/prove_families.py [OUT.md]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from yarn_convert.families import FAMILIES  # noqa: E402

MODULES = ("test_families", "test_nested", "test_mla", "test_gpt_oss", "test_converter")
PROOFS = {  # how the name of a test begins -> what it proves
    "test_tensors_and_keys_equal": "as llama.cpp's converter",
    "test_a_gguf_holds_the_language_model": "as llama.cpp's converter",
    "test_hf_to_gguf_to_hf": "there and back",
    "test_a_folder_of_such_a_gguf": "there and back",
    "test_a_gguf_of_remote_code": "there and back",
    "test_the_reference_computes": "reference",
    "test_transformers_computes_what_is_meant": "transformers",
    "test_yarn_past_the_window_is_what_llama_cpp": "llama.cpp",
    "test_llama_cpp_computes_from_it": "llama.cpp",
    "test_yarn_past_the_window_is_what_transformers": "transformers",
    "test_what_llama_cpp_would_not_compute": "refusals",
}
COLUMNS = tuple(dict.fromkeys(PROOFS.values()))
CONVERTER = "by llama.cpp's converter, in llama.cpp"  # of model types without a row
PROOFS |= dict.fromkeys(("test_a_model_type_that_is_not_read_here", "test_a_language_model_without_a_row"), CONVERTER)
MADE_IN_CONFTEST = ("llama", "mistral")  # of which all other tests are made


def measured(report: Path) -> dict[str, dict[str, list[bool]]]:
    """family -> what is proved -> whether each test of it passed."""
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for case in ET.parse(report).iter("testcase"):
        name, _, given = case.attrib["name"].partition("[")
        proof = next((what for begin, what in PROOFS.items() if name.startswith(begin)), None)
        if proof and given and case.find("skipped") is None:
            passed = case.find("failure") is None and case.find("error") is None
            found[re.split("[/-]", given.rstrip("]"))[0]][proof].append(passed)
    return found


def rows(found: dict[str, dict[str, list[bool]]]) -> list[str]:
    """A table of all rows, a line each: how many tests passed, of how many."""
    lines = [f"| model type | GGUF | {' | '.join(COLUMNS)} |", "|" + " --- |" * (len(COLUMNS) + 2)]
    for f in FAMILIES:
        mine = found.get(f.model_type) or found.get(f.model_type.removesuffix("_text")) or {}
        cells = [f"{sum(mine[c])} of {len(mine[c])}" if c in mine else "" for c in COLUMNS]
        cells = ["by all other tests", *[""] * (len(COLUMNS) - 1)] if f.model_type in MADE_IN_CONFTEST else cells
        lines.append(f"| `{f.model_type}` | `{f.gguf_arch}` | {' | '.join(cells)} |")
    lines += ["", f"| model type without a row | {CONVERTER} |", "| --- | --- |"]
    known = {f.model_type for f in FAMILIES}
    others = {name: tests[CONVERTER] for name, tests in found.items() if CONVERTER in tests and name not in known}
    return lines + [f"| `{name}` | {sum(passed)} of {len(passed)} |" for name, passed in sorted(others.items())]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        tests = [str(ROOT / "tests" / f"{name}.py") for name in MODULES]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", f"--junitxml={report}", *tests]
        code = subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode
        table = "\n".join(rows(measured(report)))
    print(table)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(table + "\n", "utf-8")
    sys.exit(code)


if __name__ == "__main__":
    main()
