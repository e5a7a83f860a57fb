"""Runs several versions of transformers on every config.json that yarn-convert writes, and records which of them compute it otherwise.

    python make_versions.py [FOLDER …]

FOLDER holds one version, with what else it needs: pip install --no-deps --target FOLDER transformers==5.0.0 tokenizers==0.22.2
huggingface_hub==1.3.0 httpx httpcore … Without one: the version of the environment. Each call replaces that version's entry in
tests/data/versions.json: which model types it does not have, and for each config that it refuses or computes otherwise, why.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "tests" / "data" / "versions.json"
WAYS = (("linear", "metadata"), ("ntk-aware", "metadata"), ("ntk-by-parts", "metadata"), ("yarn", "metadata"), ("yarn", "tensors"))


def written():
    """name -> (config.json as yarn-convert writes it, its table, that of its other layers or None, and why each reader does not
    compute it), for all that it extends."""
    from family_models import TINY, described

    from yarn_convert.checkpoint import open_checkpoint
    from yarn_convert.checkpoint.source import Source
    from yarn_convert.conversion import extend
    from yarn_convert.errors import YarnConvertError
    from yarn_convert.families import MODEL_TYPES
    from yarn_convert.options import Recipe
    from yarn_convert.rope import table
    from yarn_convert.targets.plan import carry_hf, edited

    found = {}
    for model_type in (name for name, row in MODEL_TYPES.items() if not row.since):
        config = described(model_type) if model_type in TINY else described("qwen3") | {"architectures": ["AnyForCausalLM"]}
        names = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
        config |= {"architectures": [names[model_type]]} if model_type in names else {}
        config = {k: v for k, v in config.items() if model_type in TINY or "window" not in k}
        config |= {"model_type": model_type, "rope_parameters": None, "rope_scaling": None, "pad_token_id": 0}
        for method, carry in WAYS:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    (Path(folder) / "config.json").write_text(json.dumps(config))
                    c = open_checkpoint(Source(Path(folder), "model", headers={}))
                    e = extend(c, Recipe(scale=4, method=method))
                    _, changes, verdicts = carry_hf(c, dict(c.written), e.rope, e.context, carry)
            except YarnConvertError as e:
                print(model_type, method, carry, "is not written:", e)
                continue
            found[f"{model_type}/{method}/{carry}"] = edited(c.written, changes), table(e.rope), c.other_layers, verdicts
    return found


def computed(config):
    """[(inv_freq, attention_scaling)] of the model's own rotary class, one for each layer type with a RoPE of its own."""
    import torch
    import transformers

    config = json.loads(json.dumps(config))
    hf = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    module = importlib.import_module(type(hf).__module__.replace("configuration_", "modeling_"))
    (name,) = [
        n for n, c in vars(module).items() if n.endswith("RotaryEmbedding") and c.__module__ == module.__name__ and "Vision" not in n
    ]
    rope = getattr(module, name)(hf)
    layers = [x for x in ("full_attention", "sliding_attention") if hasattr(rope, f"{x}_inv_freq")]
    made = []
    for layer in layers or [""]:
        rope(torch.zeros(1), torch.tensor([[0, 255]]), *([layer] if layer else []))
        prefix = f"{layer}_" if layer else ""
        made.append((getattr(rope, prefix + "inv_freq").double().numpy(), float(getattr(rope, prefix + "attention_scaling"))))
    return made


def why_not(config, target, others):
    """Why this transformers does not compute the table of a config; "" if it does."""
    import numpy as np

    try:
        found = computed(config)
    except Exception as e:  # it refuses the file
        return f"{type(e).__name__}: {str(e)[:100]}"
    for (inv_freq, multiplier), wanted in zip(found, (target, others), strict=False):
        if inv_freq.shape != wanted.inv_freq.shape:
            return f"rotates {2 * len(inv_freq)} dimensions"
        if not np.allclose(inv_freq, wanted.inv_freq, rtol=3e-6, atol=0):
            return f"frequencies off by up to {np.abs(inv_freq / wanted.inv_freq - 1).max():.2g}"
        if abs(multiplier / wanted.multiplier - 1) > 1e-6:
            return f"multiplier {multiplier:.6g} instead of {wanted.multiplier:.6g}"
    return ""


def main(folders):
    sys.path[:0] = [*folders, str(ROOT / "tests"), str(ROOT)]
    import transformers

    transformers.logging.set_verbosity_error()
    configs, has = written(), transformers.CONFIG_MAPPING
    verdicts = {name: why_not(*found[:3]) for name, found in configs.items() if name.split("/")[0] in has}
    lacks = sorted({name.split("/")[0] for name in configs} - set(has))
    made = json.loads(OUT.read_text()) if OUT.exists() else {"versions": {}}
    made |= {"made by": "tools/make_versions.py", "configs": list(configs)}
    entry = {"lacks": lacks, "ran": len(verdicts), "otherwise": {k: v for k, v in verdicts.items() if v}}
    made["versions"] = dict(sorted({**made["versions"], transformers.__version__: entry}.items()))
    OUT.write_text(json.dumps(made, indent=1) + "\n")
    print(transformers.__version__, json.dumps(entry, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
