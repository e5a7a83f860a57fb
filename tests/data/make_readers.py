"""Runs the real code of each runtime on a grid of configs and records what it computes, in readers.json.

    python make_readers.py transformers            # transformers 4 or 5, whichever the environment has
    python make_readers.py mlx-lm                  # needs mlx (on Linux: mlx[cpu])
    python make_readers.py vllm VLLM               # VLLM: an unpacked sdist or a checkout; needs torch, transformers 5
    python make_readers.py sglang SGLANG           # SGLANG: an unpacked sglang wheel, or a checkout's python/
    python make_readers.py exllamav3 CHECKOUT      # likewise

Each call replaces one runtime's entry. For vLLM, SGLang and exllamav3 the rotary embedding, the code that reads the
config and the code that derives the context run as they are; whatever else they import is stubbed. The table is read
off what the runtime puts out for positions 0 and 1: cos and sin of the angle, times the multiplier.
"""

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

OUT = Path(__file__).with_name("readers.json")
STEPS = 16  # frequencies recorded of each table, evenly spread


def configs():
    """name -> config.json, for a Llama of 128, 64 or 80 dimensions a head."""

    def llama(scaling=None, both=False, heads=2, dim=128, **top):
        base = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": heads * dim}
        base |= {"num_attention_heads": heads, "num_key_value_heads": heads, "num_hidden_layers": 1, "head_dim": dim}
        base |= {"intermediate_size": 32, "vocab_size": 64, "rms_norm_eps": 1e-5}
        base |= {"max_position_embeddings": 32768, "rope_theta": 10000.0} | top
        base |= {"rope_scaling": scaling} if scaling else {}
        return base | ({"rope_parameters": {"rope_theta": base["rope_theta"], **scaling}} if both else {})

    yarn = {"rope_type": "yarn", "type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096}
    shape = [round(1.0 + i / 9, 3) for i in range(64)]
    pair = {"short_factor": shape, "long_factor": shape}
    long = {"rope_type": "longrope", "type": "longrope", "factor": 8.0, "original_max_position_embeddings": 4096} | pair
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 8192}
    ratio = {"mscale": 1.5, "mscale_all_dim": 1.0}
    m = (0.15 * math.log(8) + 1) / (0.1 * math.log(8) + 1)
    linear = {"rope_type": "linear", "type": "linear", "factor": 8.0}
    original = round(32768 ** (1 / 1.2**2))
    return {
        "plain": llama(),
        "theta-in-dict-only": {k: v for k, v in llama().items() if k != "rope_theta"}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        "default-dict": llama({"rope_type": "default", "rope_theta": 10000.0}, both=True),
        "theta-differs": llama({"rope_type": "default", "rope_theta": 500000.0}, both=True),
        "ntk-theta": llama(rope_theta=83094.1015625, dim=80),
        "linear": llama(linear, both=True),
        "linear-integer": llama(linear | {"factor": 8}, both=True),
        "linear-original": llama(linear | {"original_max_position_embeddings": 4096}, both=True),
        "linear-model-max-length": llama(linear, both=True, model_max_length=4096),
        "dynamic": llama({"rope_type": "dynamic", "type": "dynamic", "factor": 4.0}, both=True),
        "yarn": llama(yarn, both=True),
        "yarn-v4-dict": llama(yarn),
        "yarn-v5-dict": llama() | {"rope_parameters": {"rope_theta": 10000.0, **yarn}},
        "yarn-old-type": llama({k: v for k, v in yarn.items() if k != "rope_type"}),
        "yarn-type-conflict": llama(yarn | {"type": "linear"}),
        "yarn-both-differ": llama(yarn) | {"rope_parameters": {"rope_theta": 10000.0, **yarn, "factor": 4.0}},
        "yarn-max-position-stale": llama(yarn, both=True, max_position_embeddings=4096),
        "yarn-no-max-position": {k: v for k, v in llama(yarn).items() if k != "max_position_embeddings"},
        "longrope-no-max-position": {k: v for k, v in llama(long).items() if k != "max_position_embeddings"},
        "plain-no-max-position": {k: v for k, v in llama().items() if k != "max_position_embeddings"},
        "yarn-no-original": llama({k: yarn[k] for k in ("rope_type", "type", "factor")}, both=True),
        "yarn-top-level-original": llama(yarn, both=True, original_max_position_embeddings=8192),
        "yarn-attention-factor": llama(yarn | {"attention_factor": 1.0}, both=True),
        "yarn-ratio": llama(yarn | ratio, both=True),
        "yarn-attention-factor-and-ratio": llama(yarn | ratio | {"attention_factor": m}, both=True),
        "yarn-betas": llama(yarn | {"beta_fast": 16.0, "beta_slow": 2.0}, both=True),
        "yarn-not-truncated": llama(yarn | {"truncate": False}, both=True),
        "yarn-theta-5e5": llama(yarn | {"original_max_position_embeddings": 4096}, both=True, dim=64, rope_theta=5e5),
        "yarn-stray-attn-factor": llama(yarn | {"attn_factor": 0.5}, both=True),
        "yarn-partial": llama(yarn, both=True, partial_rotary_factor=0.5),
        "yarn-null-factor": llama(yarn | {"factor": None}, both=True),
        "yarn-null-betas": llama(yarn | {"beta_fast": None, "beta_slow": None}, both=True),
        "yarn-ratio-zero": llama(yarn | {"mscale": 0.0, "mscale_all_dim": 1.0}, both=True),
        "yarn-no-factor": llama({k: v for k, v in yarn.items() if k != "factor"}, both=True),
        "yarn-short-context": llama(yarn | {"original_max_position_embeddings": 64}, max_position_embeddings=512),
        "plain-partial": llama(partial_rotary_factor=0.5),
        "no-type": llama({"factor": 8.0}),
        "llama3-no-original": llama({k: v for k, v in llama3.items() if not k.startswith("orig")}, both=True),
        "llama3": llama(llama3, both=True, max_position_embeddings=131072, rope_theta=5e5),
        "longrope": llama(long | {"long_factor": [2 * x for x in shape]}, both=True),
        "longrope-explicit": llama(
            long | {"attention_factor": 1.2, "short_mscale": 1.2, "long_mscale": 1.2}, both=True
        ),
        "longrope-explicit-solved": llama(
            long | {"attention_factor": 1.2, "short_mscale": 1.2, "long_mscale": 1.2}
            | {"original_max_position_embeddings": original, "factor": 32768 / original}, both=True
        ),
        "longrope-explicit-one": llama(
            long | {"attention_factor": 1.0, "short_mscale": 1.0, "long_mscale": 1.0}
            | {"original_max_position_embeddings": 32768, "factor": 1.0}, both=True
        ),
        "longrope-no-factor": llama({k: v for k, v in long.items() if k != "factor"}, both=True),
        "longrope-short-list": llama(long | {"long_factor": shape[:32], "short_factor": shape[:32]}, both=True),
        "longrope-no-original": llama({k: v for k, v in long.items() if not k.startswith("orig")}, both=True),
        "longrope-top-level-original": llama(long, both=True, original_max_position_embeddings=4096),
        "su": llama(long | {"rope_type": "su", "type": "su"}),
        "mistral-no-head-dim": {k: v for k, v in llama(yarn, both=True).items() if k != "head_dim"}
        | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
    }  # fmt: skip


def reading(cos, sin, context, at_zero=None):
    """The table behind cos·m and sin·m of position 1; the multiplier is their length, or cos at position 0."""
    import numpy as np

    cos, sin = np.asarray(cos, np.float64), np.asarray(sin, np.float64)
    index = np.unique(np.linspace(0, len(cos) - 1, STEPS).round().astype(int))
    multiplier = float(np.median(np.hypot(cos, sin)) if at_zero is None else at_zero)
    values = [float(f"{v:.9g}") for v in np.arctan2(sin, cos)[index]]
    return {"pairs": len(cos), "inv_freq": values, "multiplier": float(f"{multiplier:.9g}"), "context": context}


def hf_config(config):
    from transformers import AutoConfig

    rest = json.loads(json.dumps(config))
    return AutoConfig.for_model(rest.pop("model_type"), **rest)


def run_transformers(config):
    import torch
    from transformers.models.llama import modeling_llama
    from transformers.models.mistral import modeling_mistral

    hf = hf_config(config)
    module = modeling_mistral if hf.model_type == "mistral" else modeling_llama
    rope = getattr(module, hf.model_type.capitalize() + "RotaryEmbedding")(hf)
    x = torch.zeros(1, 1, 1, config["hidden_size"] // config["num_attention_heads"])
    last = hf.max_position_embeddings - 1
    cos, sin = rope(x, torch.tensor([[0, 1, last]]))
    module.apply_rotary_pos_emb(x, x, cos[:, :1], sin[:, :1])
    half = cos.shape[-1] // 2
    return reading(cos[0, 1, :half], sin[0, 1, :half], hf.max_position_embeddings)


def run_mlx(config):
    import mlx.core as mx
    from mlx_lm.models.llama import Attention, ModelArgs

    rope = Attention(ModelArgs.from_dict(config)).rope
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    x = mx.concatenate([mx.ones((1, 1, 1, half)), mx.zeros((1, 1, 1, half))], axis=-1)
    out = rope(x, offset=1)[0, 0, 0].tolist()
    return reading(out[:half], out[half:], None)


class Nothing:
    """Stands for whatever is not under test: false, callable, its own attribute, transparent as a decorator."""

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else self

    def __getattr__(self, name):
        return self

    def __bool__(self):
        return False


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports `real` packages from `root` and answers every other module of these top-level names with stubs."""

    def __init__(self, root, names, real, special):
        self.root, self.names, self.real, self.special = Path(root), names, real, special

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.names:
            return None
        file = self.root.joinpath(*name.split("."))
        if name in self.real or name.rpartition(".")[0] in self.real:
            for source in (file / "__init__.py", file.with_suffix(".py")):
                if source.exists():
                    places = [str(file)] if source.name == "__init__.py" else None
                    return importlib.util.spec_from_file_location(name, source, submodule_search_locations=places)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        import torch

        module = types.ModuleType(spec.name)
        module.__file__ = "stub"
        body = {"__init__": lambda self, *args, **kwargs: torch.nn.Module.__init__(self)}
        body["enabled"] = body["register"] = body["register_oot"] = staticmethod(lambda *args, **kwargs: Nothing())
        base = type("Stub", (torch.nn.Module,), body)
        special = self.special
        module.__getattr__ = lambda name: special.get(name) or (base if name[:1].isupper() else Nothing())
        return module

    def exec_module(self, module):
        pass


def functions(path, names, scope):
    """These functions of a source file (methods too), compiled alone, with `scope` as their globals."""
    nodes = [n for n in ast.walk(ast.parse(Path(path).read_text())) if isinstance(n, ast.FunctionDef)]
    for node in nodes:
        if node.name in names and node.name not in scope:
            node.decorator_list, node.returns = [], None
            for arg in node.args.args + node.args.kwonlyargs:
                arg.annotation = None
            exec(compile(ast.Module([node], []), str(path), "exec"), scope)
    return scope


def from_cache(cache, row, context):
    half = cache.shape[-1] // 2
    return reading(cache[row, :half], cache[row, half:], context)


def vllm(root):
    import torch

    state = types.SimpleNamespace(model_config=types.SimpleNamespace(max_model_len=0))
    package = "vllm.model_executor.layers.rotary_embedding"
    sys.meta_path.insert(0, Stubs(root, {"vllm", "flashinfer"}, {package}, {"get_current_vllm_config": lambda: state}))
    rope = importlib.import_module(package)
    platform = types.SimpleNamespace(check_max_model_len=lambda n: n)
    scope = {"logger": Nothing(), "math": math, "current_platform": platform, "Any": object}
    scope["hf_configuration_utils"] = importlib.import_module("transformers.configuration_utils")
    scope["ALLOWED_LAYER_TYPES"] = scope["hf_configuration_utils"].ALLOWED_LAYER_TYPES
    names = {"patch_rope_parameters", "patch_legacy_rope_type", "_patch_legacy_rope_type", "iter_rope_parameters"}
    base = Path(root) / "vllm"
    functions(base / "transformers_utils/config.py", names | {"is_rope_parameters_nested"}, scope)
    functions(base / "config/model.py", {"_get_and_verify_max_len"}, scope)
    convertor = base / "transformers_utils/model_arch_config_convertor.py"
    functions(convertor, {"derive_max_model_len_and_key"}, scope)
    utils = functions(base / "config/utils.py", {"getattr_iter"}, {"logger": Nothing()})
    sys.modules["vllm.config.utils"] = types.SimpleNamespace(getattr_iter=utils["getattr_iter"])

    def run(config):
        hf = hf_config(config)
        scope["patch_rope_parameters"](hf)
        derived = scope["derive_max_model_len_and_key"](types.SimpleNamespace(hf_text_config=hf))
        arch = types.SimpleNamespace(derived_max_model_len_and_key=derived)
        context = scope["_get_and_verify_max_len"](hf, arch, None, None, False, None)
        state.model_config.max_model_len = context
        head = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
        rope._ROPE_DICT.clear()
        built = rope.get_rope(head, hf.max_position_embeddings, True, hf.rope_parameters, torch.float32)
        if hasattr(built, "long_short_cos_sin_cache"):
            offset = built.original_max_position_embeddings if built.use_long_rope else 0
            return from_cache(built.long_short_cos_sin_cache, offset + 1, context)
        return from_cache(built.cos_sin_cache, 1, context)

    return run, version_of(root, "vllm")


def sglang(root):
    import torch

    package = "sglang.srt.layers.rotary_embedding"
    special = {"publish_role": lambda: None, "is_cpu": lambda: True}
    sys.meta_path.insert(0, Stubs(root, {"sglang", "sgl_kernel", "vllm", "triton"}, {package}, special))
    torch.compile = lambda f=None, **options: f or (lambda g: g)
    factory = importlib.import_module(package + ".factory")
    base = Path(root) / "sglang/srt"
    common = base / "utils/hf_transformers/common.py"
    assigned = [node for node in ast.parse(common.read_text()).body if isinstance(node, ast.Assign)]
    keys = next(ast.literal_eval(n.value) for n in assigned if getattr(n.targets[0], "id", "") == "CONTEXT_LENGTH_KEYS")
    length = functions(common, {"get_context_length"}, {"CONTEXT_LENGTH_KEYS": keys})

    def run(config):  # the lines between config and get_rope are models/llama.py, LlamaDecoderLayer and LlamaAttention
        hf = hf_config(config)
        context = length["get_context_length"](hf)
        parameters = hf.rope_parameters
        if getattr(hf, "original_max_position_embeddings", None):
            parameters["original_max_position_embeddings"] = hf.original_max_position_embeddings
        head = getattr(hf, "head_dim", hf.hidden_size // hf.num_attention_heads)
        factory._ROPE_DICT.clear()
        rotary = int(getattr(hf, "partial_rotary_factor", 1) * head)
        theta = parameters.get("rope_theta", 10000)
        built = factory.get_rope(head, rotary, hf.max_position_embeddings, theta, True, parameters, torch.float32)
        if hasattr(built, "long_short_cos_sin_cache"):
            beyond = context - 1 > built.original_max_position_embeddings
            row = built.original_max_position_embeddings * beyond + 1
            return from_cache(built.long_short_cos_sin_cache, row, context)
        return from_cache(built.cos_sin_cache, 1, context)

    return run, version_of(root, "sglang")


def exllamav3(root):
    import torch

    special = {"exllamav3_ext": Nothing()}
    sys.meta_path.insert(0, Stubs(root, {"exllamav3"}, {"exllamav3.util.rope"}, special))
    spec = importlib.util.spec_from_file_location("exllamav3.util.rope", Path(root) / "exllamav3/util/rope.py")
    rope = importlib.util.module_from_spec(spec)
    sys.modules["exllamav3.util.rope"] = rope
    spec.loader.exec_module(rope)
    scope = {"no_default": object(), "cast": lambda t, x: x, "T": object, "RopeSettings": rope.RopeSettings}
    functions(Path(root) / "exllamav3/util/file.py", {"read_dict"}, scope)
    functions(Path(root) / "exllamav3/model/config.py", {"read_rope_settings_default"}, scope)

    def run(config):
        context = scope["read_dict"](config, int, "max_position_embeddings", 8192)
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        self = types.SimpleNamespace(config_dict=config, head_dim=head)
        built = rope.RoPE("cpu", scope["read_rope_settings_default"](self, rope.RopeStyle.NEOX))
        sin, cos = built.compute_sincos(torch.tensor([0, 1]))
        half = cos.shape[-1] // 2
        return reading(cos[1, :half], sin[1, :half], context)

    return run, (Path(root) / "exllamav3/version.py").read_text().split('"')[1]


def version_of(root, name):
    found = [*Path(root).glob(f"{name}-*.dist-info/METADATA"), *Path(root).glob("PKG-INFO")]
    lines = found[0].read_text().splitlines() if found else ["Version: unknown"]
    return next(line.split(": ")[1] for line in lines if line.startswith("Version: "))


def installed(distribution):
    from importlib.metadata import version

    return version(distribution)


def main(runtime, root=None):
    if runtime == "transformers":
        run, version = run_transformers, installed("transformers")
        runtime = f"transformers-{version.split('.')[0]}"
    elif runtime == "mlx-lm":
        run, version = run_mlx, installed("mlx-lm")
    else:
        run, version = {"vllm": vllm, "sglang": sglang, "exllamav3": exllamav3}[runtime](root)
    grid, readings = configs(), {}
    for name, config in grid.items():
        try:
            readings[name] = run(json.loads(json.dumps(config)))
        except Exception as error:  # the runtime refuses: that is a reading too
            readings[name] = {"error": f"{type(error).__name__}: {str(error)[:160]}"}
        print(runtime, version, name, {k: v for k, v in readings[name].items() if k != "inv_freq"})
    readers = json.loads(OUT.read_text())["readers"] if OUT.exists() else {}
    readers[runtime] = {"version": version, "readings": readings}
    OUT.write_text(layout({"made by": "tests/data/make_readers.py", "configs": grid, "readers": readers}) + "\n")


def layout(value, depth=0):
    """JSON with one config and one reading to a line."""
    if not isinstance(value, dict) or "hidden_size" in value or not {"inv_freq", "error"}.isdisjoint(value):
        return json.dumps(value)
    pad = "  " * (depth + 1)
    lines = [f"{pad}{json.dumps(key)}: {layout(item, depth + 1)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"


if __name__ == "__main__":
    main(*sys.argv[1:])
