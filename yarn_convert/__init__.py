"""Extends RoPE language models to longer contexts, so that other runtimes compute exactly what was meant.

    from pathlib import Path
    from yarn_convert.conversion import Options, convert

    convert("smollm2-135m", Options(scale=4, out="gguf", output=Path("long.gguf")))

Every command of `yarn-convert` is one call of a public function: `convert.convert`, `describe.describe`.
"""
