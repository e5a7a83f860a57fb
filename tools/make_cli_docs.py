"""Writes docs/cli.md from the command line's own help."""

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
EVALUATE = (["evaluate"], *(["evaluate", name] for name in ("perplexity", "passkey", "needle", "longppl", "temperature", "advise")))
COMMANDS = (
    [],
    ["convert"],
    ["overrides"],
    ["validate"],
    ["inspect"],
    ["repair"],
    ["finetune"],
    ["upload"],
    ["card"],
    ["runtimes"],
    ["runtimes", "add"],
    ["methods"],
    *EVALUATE,
)


def page() -> str:
    env = os.environ | {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    parts = ["# The command line\n\nMade from `--help`; do not edit by hand.\n"]
    for words in COMMANDS:
        command = [sys.executable, "-m", "yarn_convert", *words, "--help"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
        parts.append(f"## {' '.join(['yarn-convert', *words])}\n\n```\n{text.strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
