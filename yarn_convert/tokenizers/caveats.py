"""Owns what of a tokenizer no `tokenizer.*` key carries: white space that added tokens strip, and `caveats` to print."""

from __future__ import annotations

import re

from ..errors import many
from ..formats.files import exists
from .pretokenizers import steps_of
from .specials import JINJA, left_templates
from .vocabulary import Files, Json

# Tokens that src/llama-vocab.cpp, load, makes special by their text, whatever their type: end of turn, end of generation,
# infill, and those of gpt-oss. Qwen's vocabulary has </s> as a plain word of HTML.
_TEXTS = """
    </s> <EOT> <MID> <PAD> <PRE> <REPO> <SUF> <end_of_turn> <end_of_utterance> <eos> <fim-middle> <fim-pad> <fim-prefix>
    <fim-repo> <fim-suffix> <fim_middle> <fim_pad> <fim_prefix> <fim_suffix> <reponame> <turn|> <|calls|> <|call|>
    <|channel|> <|code_middle|> <|code_prefix|> <|code_suffix|> <|constrain|> <|end_of_text|> <|endoftext|> <|end|>
    <|eom_id|> <|eot_id|> <|file_sep|> <|fim_middle|> <|fim_pad|> <|fim_prefix|> <|fim_repo|> <|fim_suffix|> <|flush|>
    <|im_end|> <|message|> <|middle|> <|prefix|> <|repo_name|> <|return|> <|start|> <|suffix|> <|tool_response>
    <｜end▁of▁sentence｜> <｜fim▁begin｜> <｜fim▁end｜> <｜fim▁hole｜> [EOS] [EOT] [PAD] [e~[ _<EOT> ▁<MID> ▁<PRE> ▁<SUF>
"""
BY_TEXT = frozenset(_TEXTS.split())
UNSTRIPPED = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def strips(name: str) -> bool:
    """Whether llama.cpp drops white space after special tokens, but UNSTRIPPED, in a file of this general.name.

    src/llama-vocab.cpp, load: RSTRIP goes by the model's name. The file must then have the tokens UNSTRIPPED and </s>.
    """
    return "phi-3" in name.lower() or "phi3" in name.lower()


def fitting_name(files: Files, name: str) -> str:
    """`name`, changed where llama.cpp would strip white space otherwise than this tokenizer does in a file of that name."""
    tokens = _added(files)
    plain = {text for text, flags in tokens.items() if not flags.get("rstrip")}
    needed = {*UNSTRIPPED, "</s>"} <= set(tokens) and len(plain) < len(tokens) and plain >= UNSTRIPPED
    if needed == strips(name):
        return name
    return f"phi-3 {name}" if needed else re.sub("(?i)(phi)-?3", r"\1_3", name)


def caveats(files: Files, name: str = "") -> tuple[str, ...]:
    """One line for everything that makes llama.cpp read some text otherwise than this tokenizer.

    For files that `to_gguf` has accepted. `name` is the general.name of the file to be written.
    """
    tokens, found = _added(files), []
    expected = {text: strips(name) and text not in UNSTRIPPED for text in tokens}
    for flag, what in (("rstrip", "after"), ("lstrip", "before")):
        wrong = [text for text, flags in tokens.items() if bool(flags.get(flag)) != (expected[text] and flag == "rstrip")]
        if wrong:
            found.append(f"white space {what} {many(len(wrong), 'special token')} ({wrong[0]} …) is kept or dropped otherwise by llama.cpp")
    if words := [text for text, flags in tokens.items() if flags.get("single_word")]:
        alone = "is a word of its own" if len(words) == 1 else "are words of their own"
        found.append(f"{many(len(words), 'added token')} ({words[0]} …) {alone} only; llama.cpp finds such within words too")
    vocab = (files.tokenizer.get("model") or {}).get("vocab") or {}
    if plain := sorted(BY_TEXT & set(vocab) - set(tokens)):
        found.append(f"llama.cpp takes {', '.join(plain)} in a text for special tokens; for the tokenizer they are plain text")
    normalizers = {str(step.get("type")) for step in steps_of(files.tokenizer.get("normalizer"), "normalizers")}
    if normalizers & {"NFC", "NFD", "NFKC", "NFKD"} and not exists(files.folder, "tokenizer.model"):
        found.append("llama.cpp does not apply the tokenizer's Unicode normalization: text in another form is read otherwise")
    for step in steps_of(files.tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("prepend_scheme") == "first":
            found.append("llama.cpp puts a space after every special token too, the tokenizer only before the text")
    if len(lead := _lead(files.tokenizer)) > 1:
        found.append(f"the tokenizer puts {''.join(lead)} before a text, llama.cpp at most one token")
    if left := left_templates(files):
        names = f"{', '.join(left)} stay{'s' * (len(left) == 1)} behind"
        found.append(f"{names}: a GGUF gets the template of tokenizer_config.json before any file, and named ones only beside {JINJA}")
    return tuple(found)


def _added(files: Files) -> dict[str, Json]:
    """Added tokens by text; tokenizer_config.json wins."""
    entries = [*(files.tokenizer.get("added_tokens") or []), *(files.settings.get("added_tokens_decoder") or {}).values()]
    return {str(entry.get("content")): entry for entry in entries if isinstance(entry, dict)}


def _lead(tokenizer: Json) -> list[str]:
    """The special tokens that the post-processor puts before a text."""
    processor = tokenizer.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        if part.get("type") == "TemplateProcessing":
            single = [item.get("SpecialToken", {}).get("id") for item in part.get("single") or []]
            return [str(text) for text in single[: single.index(None) if None in single else 0]]
    return []
