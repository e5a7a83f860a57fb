"""`finetune`: against a plain loop of transformers, over processes, resumed, and as a model that is validated."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import VOCAB, MakeModel, wide
from family_models import make

pytest.importorskip("torch")

from yarn_convert import validate
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.manifest import read_manifest
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.scorer import Torch
from yarn_convert.conversion import convert
from yarn_convert.errors import InputError, UsageError, YarnConvertError
from yarn_convert.finetuning import finetune
from yarn_convert.finetuning.corpus import Corpus, Segments, order_of, share
from yarn_convert.finetuning.ranks import ranks_of
from yarn_convert.finetuning.settings import settings_of
from yarn_convert.finetuning.trainee import Part, Trainee
from yarn_convert.formats.tensors import read_safetensors
from yarn_convert.options import FinetuneOptions, Recipe, Texts
from yarn_convert.rope import effect

HAMLET = Path(__file__).parents[1] / "yarn_convert" / "compute" / "hamlet.txt"
TRAINING: dict[str, Any] = {"sequence": 96, "steps": 3, "batch": 4, "lr": 5e-4, "warmup": 2}
FLAGS = ["--sequence", "96", "--steps", "3", "--batch", "4", "--lr", "5e-4", "--warmup", "2"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Some pages: 26,000 bytes, which are about as many tokens here."""
    path = tmp_path / "text.txt"
    path.write_text(HAMLET.read_text("utf-8")[:26000], "utf-8")
    return path


def trained(model: Path, text: Path, where: Path, **more: Any) -> Any:
    asked = {**TRAINING, "recipe": Recipe(scale=4), "texts": Texts(files=(text,)), "output": where, **more}
    return finetune(str(model), **asked)


def losses(log: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(line["loss"], line["gradient_norm"]) for line in lines if "loss" in line]


def weights(folder: Path) -> dict[str, np.ndarray]:
    tensors, _ = read_safetensors(folder / "model.safetensors")
    return {name: t.read().view("<f4").reshape(t.shape) for name, t in tensors.items()}


def same_losses(log: Path, expected: list[tuple[float, float]]) -> None:
    """Losses and the first gradient to 1e-5; Adam's first steps go by the signs of gradients, so that rounding grows in the next ones."""
    found = losses(log)
    assert len(found) == len(expected)
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-5)
    np.testing.assert_allclose([x for _, x in found], [x for _, x in expected], rtol=5e-4)
    assert found[0][1] == pytest.approx(expected[0][1], rel=1e-5)


def same_weights(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, w in ours.items():
        error = np.sqrt(np.mean((w - theirs[name]) ** 2) / np.mean(w**2))
        assert error < 1e-4, (name, error)


def plain_loop(extended: Path, segments: list[np.ndarray], steps: int, batch: int, lr: float, warmup: int) -> tuple[list[Any], Any]:
    """Losses and gradient norms of transformers' own model on an extended folder, in a loop of a few lines; and the model."""
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(extended, dtype=torch.float32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    found = []
    for step in range(steps):
        ids = torch.from_numpy(np.stack(segments[step * batch : (step + 1) * batch]))
        loss = net(ids, labels=ids).loss
        loss.backward()
        loss = loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warmup)
        optimizer.step()
        optimizer.zero_grad()
        found.append((float(loss), float(norm)))
    return found, net


def segments_of(model: Path, text: Path, n: int, count: int) -> list[np.ndarray]:
    """The segments of a training in their order, cut by hand: BOS is not put before a text by this tokenizer, EOS is 2."""
    from tokenizers import Tokenizer

    ids = np.asarray(Tokenizer.from_file(str(model / "tokenizer.json")).encode(text.read_text("utf-8"), add_special_tokens=False).ids)
    cut = [np.append(ids[i : i + n - 1], 2) for i in range(0, len(ids) - n + 2, n - 1)]
    order = order_of(len(cut), 0, True)
    return [cut[order.at(k)] for k in range(count)]


def test_a_training_is_that_of_transformers_with_the_same_segments(make_model: MakeModel, text: Path, tmp_path: Path) -> None:
    """Losses, gradients and weights of three steps, with accumulation, chunks of logits and checkpointed layers, against a loop without."""
    model, extended = make_model(tied=True), tmp_path / "extended"
    convert(str(model), recipe=Recipe(scale=4), output=extended)
    done = trained(model, text, tmp_path / "out")
    expected, net = plain_loop(extended, segments_of(model, text, 96, 12), 3, 4, 5e-4, 2)
    same_losses(tmp_path / "out.jsonl", expected)
    ours = weights(tmp_path / "out")
    same_weights(ours, {name: p.numpy() for name, p in net.state_dict().items() if name in ours})
    before = weights(model)
    assert max(np.abs(ours[name] - before[name]).max() for name in before) > 1e-3  # they did move
    manifest = read_manifest(tmp_path / "out")
    assert manifest and manifest.finetuned and manifest.weights.identical_to_base is False and manifest.base.name == "tiny"
    (record,) = manifest.finetuning or []
    assert (record.steps, record.tokens, record.sequence, record.data) == (3, 3 * 4 * 96, 96, ["text.txt"])
    assert "sequence 96 where the paper (4.1) has 65,536" in record.deviations
    assert [p.window for p in record.held_out] == [64, 96] and all(p.after != p.before for p in record.held_out)
    assert done.manifest == manifest
    assert not (tmp_path / ".out.training").exists()


# -- over processes ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def started(count: int, *words: str, code: str = "") -> list[subprocess.Popen[str]]:
    """The processes that torchrun would start, each with its number in the environment."""
    port = str(free_port())
    run = ["-c", code] if code else ["-m", "yarn_convert"]
    env = dict(os.environ) | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *run, *words], env=env | {"RANK": str(i), "LOCAL_RANK": str(i)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(count)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    return [(p.returncode, out, err) for p in processes for out, err in [p.communicate(timeout=300)]]


@pytest.fixture
def one_process(make_model: MakeModel, text: Path, tmp_path: Path) -> tuple[Path, Path]:
    """(a model, its training by one process)."""
    model = make_model()
    trained(model, text, tmp_path / "one")
    return model, tmp_path / "one"


@pytest.mark.parametrize(("count", "pack"), [(2, True), (4, False)], ids=["two hold each segment", "two pairs"])
def test_several_processes_train_as_one(make_model: MakeModel, text: Path, tmp_path: Path, count: int, pack: bool) -> None:
    """Parameters sharded over all, segments shared out by tokens in pairs, and, of four, by segments: losses, gradients and weights."""
    model, one, out = make_model(), tmp_path / "one", tmp_path / "several"
    if pack:
        lines = [json.dumps({"text": part}) for part in text.read_text("utf-8").split("\n\n")]
        text = tmp_path / "text.jsonl"
        text.write_text("\n".join(lines), "utf-8")
    trained(model, text, one, pack=pack)
    words = [*FLAGS, "--sequence-parallel", "2", *(["--pack"] if pack else [])]
    done = ended(started(count, "finetune", str(model), "--scale", "4", "--text", str(text), *words, "-o", str(out), "--json"))
    assert [code for code, _, _ in done] == [0] * count, done
    assert [bool(printed) for _, printed, _ in done] == [True] + [False] * (count - 1)  # the first one speaks
    same_losses(tmp_path / "several.jsonl", losses(tmp_path / "one.jsonl"))
    same_weights(weights(out), weights(one))
    first, second = (json.loads((path / "yarn_convert.json").read_text())["finetuning"][0] for path in (one, out))
    for a, b in zip(first["held_out"], second["held_out"], strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert (first["processes"], second["processes"]) == (1, count)


def test_a_table_that_one_process_has_otherwise_is_noticed(make_model: MakeModel, text: Path, tmp_path: Path) -> None:
    code = """
import os, sys
from yarn_convert.finetuning.trainee import Trainee
serve = Trainee.serve
def wrong(self, effect, n):
    serve(self, effect._replace(inv_freq=effect.inv_freq * 1.001) if os.environ["RANK"] == "1" else effect, n)
Trainee.serve = wrong
from yarn_convert.cli import main
main(sys.argv[1:])
"""
    words = ["finetune", str(make_model()), "--scale", "4", "--text", str(text), *FLAGS, "-o", str(tmp_path / "out")]
    for exit_code, _, said in ended(started(2, *words, code=code)):
        assert exit_code == 1 and "the table that the model turns by is not the recipe's" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_killed_process_stops_all_and_the_same_command_goes_on(one_process: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    model, one = one_process
    out = tmp_path / "out"
    words = ["finetune", str(model), "--scale", "4", "--text", str(text), *FLAGS, "--checkpoint-every", "1", "-o", str(out)]
    processes = started(2, *words)
    wait_for(lambda: (tmp_path / ".out.training" / "step-000001").exists())
    processes[1].kill()
    (code, _, said), _ = ended(processes)
    assert code == 1 and "another process of this training has ended" in said and "Traceback" not in said, said
    trained(model, text, out, checkpoint_every=1)  # by one process alone
    same_losses(tmp_path / "out.jsonl", losses(tmp_path / "one.jsonl"))
    same_weights(weights(out), weights(one))


def wait_for(what: Any, seconds: float = 120) -> None:
    begin = time.monotonic()
    while not what():
        assert time.monotonic() - begin < seconds
        time.sleep(0.05)


# -- going on ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_the_state_and_the_same_command_goes_on(one_process: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    model, one = one_process
    out = tmp_path / "out"
    words = [sys.executable, "-m", "yarn_convert", "finetune", str(model), "--scale", "4", "--text", str(text), *FLAGS, "-o", str(out)]
    words += ["--checkpoint-every", "100"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "out.jsonl").exists() and losses(tmp_path / "out.jsonl"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    kept = list((tmp_path / ".out.training").glob("step-*"))
    assert len(kept) == 1 and not out.exists()
    with pytest.raises(UsageError, match="with another lr"):
        trained(model, text, out, lr=1e-3)
    trained(model, text, out, checkpoint_every=100, resume=True)
    same_losses(tmp_path / "out.jsonl", losses(tmp_path / "one.jsonl"))
    same_weights(weights(out), weights(one))


# -- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["starcoder2", "gemma2", "gpt_oss", "mixtral", "deepseek_v3", "qwen3_next"])
def test_before_the_first_step_a_model_has_the_losses_of_an_evaluation(tmp_path: Path, name: str) -> None:
    """Windows, capped scores, sinks, experts, latent and linear attention, chunks: our attention against transformers' own code."""
    import torch

    c = open_checkpoint(resolve(str(make(name, tmp_path / "model", config={"sliding_window": 48} if name == "starcoder2" else None))))
    s, _ = settings_of(c, FinetuneOptions(recipe=Recipe(scale=4), sequence=192, batch=1), "cpu")
    rope = s.rope
    ids = np.random.default_rng(0).integers(3, c.hparams["vocab_size"], 192)
    expected = Torch(c, "cpu").losses(rope, ids, 1)
    with ranks_of("cpu", 1) as ranks:
        trainee = Trainee(c, s, ranks)
        trainee.serve(effect(rope, 192), 192)
        trainee.check_table(effect(rope, 192), 192)
        part = Part(*(torch.from_numpy(x)[None] for x in (ids, np.arange(192), np.append(ids[1:], -100))))
        (found,) = trainee.losses(part)
        total = trainee.loss(part)
        total.backward()
    np.testing.assert_allclose(found[:-1], expected, atol=3e-5)
    assert float(total.detach()) == pytest.approx(expected.sum(), rel=1e-5)
    assert all(p.grad is not None for n, p in trainee.module.named_parameters() if "layers.0" in n and "q_" in n)


def test_adapters_are_merged_into_what_they_compute(make_model: MakeModel, text: Path, tmp_path: Path) -> None:
    """The written model has the perplexity that the adapted one had, on the very segment that was held out; the norms are the base's."""
    model, out = make_model(), tmp_path / "out"
    held = tmp_path / "held.txt"
    held.write_text(HAMLET.read_text("utf-8")[50000:51000], "utf-8")
    done = trained(model, text, out, lora=4, steps=6, lr=2e-2, held_out=(held,), windows=(90,))
    (point,) = done.manifest.finetuning[0].held_out
    assert point.after < 0.97 * point.before
    extended = tmp_path / "extended"
    convert(str(model), recipe=Recipe(scale=4), output=extended)
    before, after = weights(model), weights(out)
    assert {n for n in after if not np.array_equal(before[n], after[n])} == {n for n in after if "_proj" in n}
    assert measured(held, 96, 90, out) == pytest.approx(point.after, rel=2e-5)
    assert measured(held, 96, 90, extended) == pytest.approx(point.before, rel=2e-5)


def measured(text: Path, n: int, window: int, model: Path) -> float:
    """Perplexity of transformers' own code over the segments of a text, each cut at a window."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text.read_text("utf-8"), add_special_tokens=False).ids
    rows = torch.tensor([ids[i : i + window] for i in range(0, len(ids) - n + 2, n - 1)][:8])
    with torch.no_grad():
        return math.exp(float(net(rows, labels=rows).loss))


@pytest.mark.parametrize("name", ["mixtral", "gemma3_text", "deepseek_v3"])
def test_what_transformers_calls_otherwise_is_written_as_it_is_published(tmp_path: Path, text: Path, name: str) -> None:
    """Experts that it stacks, layers with a RoPE of their own, latent attention: the same tensors, and a model that is validated."""
    model = make(name, tmp_path / "model")
    done = trained(model, text, tmp_path / "out", steps=1, batch=1, sliding_window="keep")
    before, _ = read_safetensors(model / "model.safetensors")
    after, _ = read_safetensors(tmp_path / "out" / "model.safetensors")
    assert {k: (t.dtype, t.shape) for k, t in after.items()} == {k: (t.dtype, t.shape) for k, t in before.items()}
    assert sum(not np.array_equal(before[k].read(), after[k].read()) for k in before) > 0.9 * len(before)
    result = validate(str(done.output), base=str(model), runtimes=("transformers",), tokens=256, twin=False)
    assert result.verdict == "passed", result.reasons


def test_a_gguf_is_trained_and_comes_out_as_one(make_model: MakeModel, text: Path, tmp_path: Path) -> None:
    """And a training from where another ended counts from the first L, and keeps what is on record of both."""
    base, first, second = tmp_path / "base.gguf", tmp_path / "first.gguf", tmp_path / "second"
    convert(str(make_model()), recipe=Recipe(method="none"), out="gguf", output=base)
    trained(base, text, first, recipe=Recipe(scale=2), out="gguf", steps=2)
    c = open_checkpoint(resolve(str(first)))
    assert (c.rope.method, c.rope.number("factor"), c.context) == ("yarn", 2.0, 128)
    trained(first, text, second, recipe=Recipe(scale=4), steps=1)
    c = open_checkpoint(resolve(str(second)))
    assert (c.rope.method, c.rope.number("factor"), c.rope.original_context, c.context) == ("yarn", 4.0, 64, 256)
    manifest = read_manifest(second)
    assert manifest and manifest.base.name == "first" and [t.steps for t in manifest.finetuning or []] == [2, 1]
    as_it_is = trained(second, text, tmp_path / "third", recipe=Recipe(), steps=1)
    assert as_it_is.manifest.recipe.rope() == c.rope
    result = validate(str(tmp_path / "third"), runtimes=("transformers",), tokens=256, twin=False)
    assert result.verdict == "passed", result.reasons


def test_a_notebook_that_has_turned_gradients_off_trains_all_the_same(make_model: MakeModel, text: Path, tmp_path: Path) -> None:
    import torch

    with torch.no_grad():
        (step,) = trained(make_model(), text, tmp_path / "out", steps=1).history.steps
    assert step["gradient_norm"] > 0


def test_texts_that_the_steps_did_not_need_are_not_on_record(
    make_model: MakeModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two files is enough; of JSON lines the file counts, of a folder its own name."""
    monkeypatch.setattr("yarn_convert.finetuning.run.WHOLE", 0)
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = folder / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": part}) + "\n" for part in text.read_text("utf-8").split("\n\n") * 2), "utf-8")
    model = make_model()
    one, of_folder, of_lines = (
        trained(model, text, tmp_path / f"out{i}", texts=Texts(files=files), pack=True, steps=1, batch=1).manifest.finetuning[0].data
        for i, files in enumerate([(text, lines), (folder,), (lines,)])
    )
    assert one in (["text.txt"], ["lines.jsonl"]) and of_folder == ["texts"] and of_lines == ["lines.jsonl"]


def test_a_dynamic_method_is_trained_at_the_length_of_the_segment(make_model: MakeModel, text: Path, tmp_path: Path) -> None:
    """s = 96 / 64, where the file that comes out has that of its context baked in."""
    done = trained(make_model(), text, tmp_path / "out", recipe=Recipe(scale=4, method="dynamic-yarn"), steps=1)
    recipe = done.manifest.finetuning[0].recipe.rope()
    assert recipe.method == "dynamic-yarn" and effect(recipe, 96).multiplier == pytest.approx(0.1 * math.log(1.5) + 1)
    assert done.manifest.recipe.rope().number("factor") == 4.0
    before = done.history.held_out[0]["windows"]
    plain = trained(tmp_path / "tiny", text, tmp_path / "plain", recipe=Recipe(scale=1.5), steps=1).history.held_out[0]["windows"]
    assert before["96"]["perplexity"] == pytest.approx(plain["96"]["perplexity"], rel=1e-6)  # the same s at the segment's own length,
    assert before["64"]["perplexity"] != pytest.approx(plain["64"]["perplexity"], rel=1e-4)  # and none within L


# -- segments ---------------------------------------------------------------------------------------------------------


def corpus(*lengths: int) -> Corpus:
    ends = np.cumsum(lengths)
    return Corpus(np.arange(10, 10 + ends[-1], dtype=np.uint32), ends, [1], [2])


def test_segments_are_cut_from_one_document_between_bos_and_eos() -> None:
    segments = Segments(corpus(13, 3, 8), 6, False)
    assert [s.ids.tolist() for s in segments] == [[1, 10 + 4 * i, 11 + 4 * i, 12 + 4 * i, 13 + 4 * i, 2] for i in (0, 1, 2)] + [
        [1, 26, 27, 28, 29, 2], [1, 30, 31, 32, 33, 2],
    ]  # fmt: skip
    assert segments.left_out == 1 + 3
    assert segments[0].targets.tolist() == [10, 11, 12, 13, 2, -100] and segments[0].positions.tolist() == [0, 1, 2, 3, 4, 5]


def test_packed_documents_begin_at_position_0_and_predict_nothing_beyond_their_end() -> None:
    segments = Segments(corpus(3, 2, 7), 8, True)
    assert [s.ids.tolist() for s in segments] == [[1, 10, 11, 12, 2, 1, 13, 14], [2, 1, 15, 16, 17, 18, 19, 20]]
    assert [s.documents for s in segments] == [[(0, 5), (5, 8)], [(0, 1), (1, 8)]]
    first, second = segments
    assert first.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2] and first.targets.tolist() == [10, 11, 12, 2, -100, 13, 14, -100]
    assert second.positions.tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    ids, positions, _, documents = share([first, second], 1, 2)
    assert ids.tolist() == [[2, 1, 13, 14], [17, 18, 19, 20]] and positions.tolist() == [[4, 0, 1, 2], [3, 4, 5, 6]]
    assert documents == [first.documents, second.documents]


def test_every_segment_comes_once_an_epoch_and_held_out_ones_never() -> None:
    order = order_of(120, 7, True)
    assert order.kept == 2 and len(order.held_out()) == 2
    epochs = [[order.at(e * order.trained + i) for i in range(order.trained)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(set(range(120)) - set(order.held_out()))
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])
    assert [order_of(120, 8, True).at(i) for i in range(20)] != epochs[0][:20]
    assert (order_of(1, 0, True).kept, order_of(9, 0, False).kept) == (0, 0)


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"recipe": Recipe()}, "is not extended, and neither --scale nor --context"),
        ({"texts": Texts()}, "nothing says what to train on"),
        ({"sequence": 1000}, "longer than the 256 that are trained for"),
        ({"sequence": 5000}, "longer than the 256"),
        ({"batch": 3, "micro_batch": 2}, "a batch of 3 segments cannot be shared out among 1 copy of the model with 2 segments each"),
        ({"sequence_parallel": 2}, "--sequence-parallel 2 does not divide 1 process"),
        ({"lr": 3.0}, "--lr must be above 0 and below 1"),
        ({"windows": (512,)}, "no window of 512 tokens"),
        ({"resume": True}, "there is no training of"),
        ({"texts": Texts(files=(Path("nowhere.txt"),))}, "cannot read the text nowhere.txt"),
        ({"out": "gguf"}, "is not named .gguf"),
        ({"texts": Texts(files=(Path(__file__).parent / "data",))}, "no *.txt or *.jsonl"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    make_model: MakeModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(YarnConvertError) as e:
        finetune(
            str(make_model()), **TRAINING | {"recipe": Recipe(scale=4), "texts": Texts(files=(text,)), "output": tmp_path / "out"} | asked
        )
    assert says in e.value.message
    assert {p.name for p in tmp_path.iterdir()} == {"tiny", "text.txt"}


def test_tokens_of_another_tokenizer_are_noticed(make_model: MakeModel, tmp_path: Path) -> None:
    """Ids beyond the vocabulary at once, others by a loss that is little better than guessing."""
    rng = np.random.default_rng(0)
    model, text = make_model(), tmp_path / "ids.jsonl"
    text.write_text(json.dumps({"input_ids": rng.integers(0, VOCAB + 40, 4000).tolist()}) + "\n")
    with pytest.raises(InputError, match="beyond its vocabulary"):
        trained(model, text, tmp_path / "out")
    text.write_text(json.dumps({"input_ids": rng.integers(0, VOCAB, 4000).tolist()}) + "\n")
    with pytest.raises(InputError, match=r"a loss of \d+\.\d+ nats on these tokens, and guessing one of 5\.57"):
        trained(model, text, tmp_path / "out")


def test_a_state_that_cannot_be_kept_leaves_the_one_before(make_model: MakeModel, text: Path, tmp_path: Path) -> None:
    """A file system that takes no files above a size, as a full disk takes none."""
    model = make_model()
    code = """
import resource, signal, sys
from yarn_convert.finetuning import states
save = states.save
def limited(folder, step, *rest):
    if step == 2:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save(folder, step, *rest)
states.save = limited
from yarn_convert.cli import main
main(sys.argv[1:])
"""
    words = ["finetune", str(model), "--scale", "4", "--text", str(text), *FLAGS, "--checkpoint-every", "1", "-o", str(tmp_path / "out")]
    ((exit_code, _, said),) = ended(started(1, *words, code=code))
    assert exit_code == 1 and "the state after step 2 could not be kept" in said and "File too large" in said and "Traceback" not in said
    assert [p.name for p in (tmp_path / ".out.training").glob("*step-*")] == ["step-000001"]


def test_an_attention_that_sees_the_future_is_no_training(
    make_model: MakeModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from yarn_convert.finetuning import attention

    blind = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention, "_attended", lambda q, k, v, scale, seen: blind(q, k, v, scale=scale, enable_gqa=True))
    with pytest.raises(YarnConvertError, match="tokens see what comes later"):
        trained(make_model(), text, tmp_path / "out")


def test_an_attention_of_its_own_keeps_its_masks_and_is_not_packed(text: Path, tmp_path: Path) -> None:
    """Falcon's code does not ask ours."""
    model = make("falcon", tmp_path / "model")
    with pytest.raises(YarnConvertError, match="falcon has layers that are no attention, or one of its own"):
        trained(model, text, tmp_path / "out", pack=True)
    done = trained(model, text, tmp_path / "out", steps=1, batch=1, held_out=(text,), windows=(90,))
    convert(str(model), recipe=Recipe(scale=4), output=tmp_path / "extended")
    assert done.manifest.finetuning[0].held_out[0].before == pytest.approx(measured(text, 96, 90, tmp_path / "extended"), rel=1e-5)


def test_a_data_set_gives_what_its_texts_would(make_model: MakeModel, text: Path, tmp_path: Path) -> None:
    """Its split "train", unless another is named."""
    pytest.importorskip("datasets")
    model, folder = make_model(), tmp_path / "texts"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"text": text.read_text("utf-8")}) + "\n")
    found = trained(model, text, tmp_path / "set", steps=1, texts=Texts(dataset=str(folder)))
    plain = trained(model, text, tmp_path / "plain", steps=1)
    assert [s["loss"] for s in found.history.steps] == [s["loss"] for s in plain.history.steps]
    assert found.manifest.finetuning[0].data == ["texts"]  # its name alone, for a manifest is published


def test_a_window_that_is_turned_off_is_off_while_training_too(text: Path, tmp_path: Path) -> None:
    """What is trained is what the written config.json has."""
    model = make("starcoder2", tmp_path / "model", config={"sliding_window": 48})
    found = {}
    for window in ("keep", "off"):
        done = trained(model, text, tmp_path / window, steps=1, batch=1, held_out=(text,), windows=(90,), sliding_window=window)
        convert(str(model), recipe=Recipe(scale=4), output=tmp_path / f"{window}-x", sliding_window=window)
        found[window] = done.manifest.finetuning[0].held_out[0].before
        assert found[window] == pytest.approx(measured(text, 96, 90, tmp_path / f"{window}-x"), rel=1e-5)
    assert found["keep"] != pytest.approx(found["off"], rel=1e-4)


# -- the command ------------------------------------------------------------------------------------------------------


def run(*words: object) -> None:
    from yarn_convert.cli import main

    with pytest.raises(SystemExit) as e:
        main([*map(str, words)])
    assert not e.value.code


def test_the_command_plans_trains_and_draws(
    make_model: MakeModel, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    words = ["finetune", make_model(), "--scale", "4", "--text", text, *FLAGS]
    run(*words, "--dry-run", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert (plan["output"], plan["tokens"], plan["context"]) == ("tiny-yarn-256-tuned", 3 * 4 * 96, 256)
    assert plan["memory"]["total"] > plan["memory"]["optimizer"] == 2 * plan["memory"]["parameters"] > 0
    run(
        "finetune", "tiny", "--scale", "4", "--text", text, "--steps", "1", "--batch", "1", "--sequence", "96", "--warmup", "1", "--dry-run"
    )
    planned = capsys.readouterr().err
    assert "1 step of 1 segment of 96 tokens" in planned and "after 1 step of warm-up" in planned
    run(*words, "--report", "curve.html", "--out", "gguf")
    said = capsys.readouterr()
    assert said.out.startswith("tiny-yarn-256-tuned.gguf\nloss") and "held out         64 tokens: perplexity" in said.out
    assert (
        "memory    about" in said.err and "\nloading tiny\n" in said.err and "step 1 of 3" in said.err and "not a multiple" not in said.err
    )
    assert not wide(said.out + said.err)
    page = (tmp_path / "curve.html").read_text("utf-8")
    assert page.count("<svg") == 2 and "sequence 96 where the paper (4.1) has 65,536" in page and "text.txt" in page
    run("card", "tiny-yarn-256-tuned.gguf")
    card = capsys.readouterr().out
    assert "**Fine-tuned** at the new length by 1,152 tokens." in card and "| 64 | " in card and "another type" not in card
    run("card", "tiny-yarn-256-tuned.gguf", "--json")
    assert json.loads(capsys.readouterr().out) == {"repo": "USER/NAME", "card": card}
    (tmp_path / "tiny-yarn-256-tuned.gguf").unlink()
    (tmp_path / "tiny-yarn-256-tuned.yarn_convert.json").unlink()
    with pytest.raises(YarnConvertError, match=r"tiny-yarn-256-tuned\.gguf\.jsonl exists"):
        finetune("tiny", Recipe(scale=4), texts=Texts(files=(text,)), out="gguf", **TRAINING)
