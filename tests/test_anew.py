"""A text that grows past the switch of two lists: with `reading_anew`, transformers' generate is a fresh pass at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel

import yarn_convert
from yarn_convert.conversion import convert
from yarn_convert.options import Recipe

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT, MORE = CONTEXT - 6, 14


@pytest.fixture
def net(make_model: MakeModel, tmp_path: Path) -> Any:
    asked = Recipe(scale=4, method="ntk-by-parts", short="base")
    out = convert(str(make_model(config={"initializer_range": 0.5})), asked, output=tmp_path / "both").output
    return transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def generated(net: Any, ids: Any, **more: Any) -> tuple[Any, np.ndarray, list[int]]:
    """(the text, logits of each new token, how many tokens each pass read) of greedy generation."""
    read: list[int] = []
    hook = net.model.register_forward_pre_hook(lambda m, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    options = {"max_new_tokens": MORE, "do_sample": False, "output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    try:
        out = net.generate(ids, **options, eos_token_id=None, **more)
    finally:
        hook.remove()
    return out.sequences, torch.stack(out.logits, 1).numpy(), read


def fresh(net: Any, text: Any, **more: Any) -> np.ndarray:
    """The logits of a pass over all tokens, for each new one."""
    with torch.no_grad():
        found = []
        for n in range(text.shape[1] - MORE, text.shape[1]):
            mask = {k: torch.cat([v, torch.ones(len(v), n - v.shape[1], dtype=v.dtype)], 1) for k, v in more.items()}
            where = {"position_ids": (mask["attention_mask"].cumsum(-1) - 1).clamp(min=0)} if mask else {}
            found.append(net(text[:, :n], **mask, **where).logits[:, -1])
        return np.asarray(torch.stack(found, 1))


def test_each_token_is_that_of_a_fresh_pass_and_one_pass_reads_anew(net: Any) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 263, (1, PROMPT)))
    with yarn_convert.reading_anew(net) as model:
        text, logits, read = generated(model, ids)
    assert read == [PROMPT, *[1] * 6, CONTEXT + 1, *[1] * (MORE - 8)]
    assert np.abs(logits - fresh(net, text)).max() < 1e-4 and np.array_equal(logits.argmax(-1), text[:, PROMPT:])
    mixed_text, mixed, read = generated(net, ids)
    assert read == [PROMPT, *[1] * (MORE - 1)], "it is transformers' own again"
    assert np.abs(mixed - fresh(net, mixed_text)).max(-1)[0, 7:].min() > 1e-3, "and mixes both lists"


def test_texts_that_are_padded_switch_where_the_longest_does(net: Any) -> None:
    ids = torch.from_numpy(np.random.default_rng(1).integers(3, 263, (2, PROMPT)))
    mask = torch.ones_like(ids)
    mask[0, :3], mask[1, :9] = 0, 0
    with yarn_convert.reading_anew(net):
        text, logits, read = generated(net, ids, attention_mask=mask)
    assert read == [PROMPT, *[1] * 9, CONTEXT + 3 + 1, *[1] * (MORE - 11)]
    assert np.abs(logits - fresh(net, text, attention_mask=mask)).max() < 1e-4


def test_a_model_of_one_table_is_left_as_it_is(make_model: MakeModel) -> None:
    net = transformers.AutoModelForCausalLM.from_pretrained(make_model(), dtype=torch.float32).eval()
    with yarn_convert.reading_anew(net) as model:
        assert "prepare_inputs_for_generation" not in vars(model)
