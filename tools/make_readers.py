"""Runs the real code of each runtime on a grid of configs and records what it computes, in tests/data/readers.json, and
of models that see, whose language model is a part of them, in readers_nested.json.

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
import contextlib
import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import math
import sys
import tempfile
import types
from pathlib import Path

from reader_configs import AFTERWARDS, AROUND, FAMILIES, NEIGHBOURS, NEW_IN_5, configs, family_configs, nested_configs

OUT = Path(__file__).parents[1] / "tests" / "data" / "readers.json"
OUT_NESTED = OUT.with_name("readers_nested.json")
RUN_FOR = {  # the model types that a runtime is asked about: those whose own code the functions below run
    "transformers-4": FAMILIES.keys() - NEW_IN_5,
    # olmo3 has a table for each layer type, and exaone4 fails at a null that mlx-lm asks for
    "transformers-5": FAMILIES.keys() - {"olmo3", "exaone4"},
    "mlx-lm": FAMILIES.keys() - {"falcon", "deepseek_v2", "deepseek_v3", "phi3", "cohere2", "qwen2_moe", "ernie4_5_moe"},
    # architecture/*.py of these call read_rope_settings_default with a style alone
    "exllamav3": {"mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "cohere", "smollm3"},
    # models/*.py of these hand theta and config.rope_parameters to get_rope, as llama.py does
    "sglang": {"qwen2", "qwen3", "qwen2_moe", "granite", "cohere", "ernie4_5", "ernie4_5_moe"},
    # models/*.py of these hand config.rope_parameters to get_rope as it is
    "vllm": {"mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma2", "stablelm", "falcon", *NEIGHBOURS},
}
ASK_PAIRS = {
    "llama",
    "mistral",
    "granite",
    "ernie4_5",
    "ernie4_5_moe",
}  # SGLang's models/*.py of these: getattr(config, "rope_is_neox_style")
NESTED_FOR = {  # the models around that a runtime is asked about
    "transformers-5": AROUND.keys(),
    # models/*.py of these hand text_config to the class of a language model, which hands its rope_parameters to get_rope
    "vllm": AROUND.keys(),
    # so, but for gemma3_causal.py, which hands theta alone
    "sglang": AROUND.keys() - {"gemma3"},
    "mlx-lm": AROUND.keys(),
    # architecture/*.py of these call read_rope_settings_default with text_config
    "exllamav3": {"gemma3", "mistral3", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"},
}


def reading(cos, sin, context, at_zero=None, steps=16):
    """The table behind cos·m and sin·m of position 1; the multiplier is their length, or cos at position 0."""
    import numpy as np

    cos, sin = np.asarray(cos, np.float64), np.asarray(sin, np.float64)
    index = np.unique(np.linspace(0, len(cos) - 1, steps).round().astype(int))
    multiplier = float(np.median(np.hypot(cos, sin)) if at_zero is None else at_zero)
    values = [float(f"{v:.9g}") for v in np.arctan2(sin, cos)[index]]
    return {"pairs": len(cos), "inv_freq": values, "multiplier": float(f"{multiplier:.9g}"), "context": context}


def hf_config(config):
    from transformers import AutoConfig

    rest = json.loads(json.dumps(config))
    return AutoConfig.for_model(rest.pop("model_type"), **rest)


def run_transformers(config):
    """The rotary embedding of the model, asked at positions 0, 1 and the last; and the attention's scale, by itself."""
    import torch

    hf = hf_config(config).get_text_config()
    module = importlib.import_module(type(hf).__module__.replace("configuration_", "modeling_"))
    (name,) = [
        n for n, c in vars(module).items() if n.endswith("RotaryEmbedding") and c.__module__ == module.__name__ and "Vision" not in n
    ]
    positions = torch.tensor([[0, 1, hf.max_position_embeddings - 1]])
    found = [rotated(getattr(module, name)(hf), hf, positions, layer) for layer in layers_of(hf, config)]
    if hf.model_type in ("llama", "mistral"):
        x = torch.zeros(1, 1, 1, hf.hidden_size // hf.num_attention_heads)
        module.apply_rotary_pos_emb(x, x, *found[0][2])
    steps = 16 if hf.model_type in ("llama", "mistral") else 6
    made = reading(*found[0][:2], hf.max_position_embeddings, steps=steps)
    if len(found) > 1:
        made["others"] = reading(*found[1][:2], None, steps=steps)
    if hf.model_type.startswith("deepseek"):
        attention = getattr(module, name.replace("RotaryEmbedding", "Attention"))(hf, 0)
        made["logits"] = float(f"{attention.scaling * attention.qk_head_dim**0.5:.9g}")
    return made


def layers_of(hf, config):
    """transformers 5 has a rotary embedding for several layer types, 4 one for each."""
    from transformers import __version__

    if hf.model_type != "gemma3_text":
        return (None,)
    return ("full_attention", "sliding_attention") if __version__ >= "5" else ("global", "local")


def rotated(rope, hf, positions, layer):
    import torch

    if layer == "local":  # Gemma3TextModel.__init__ of transformers 4
        import copy

        hf = copy.deepcopy(hf)
        hf.rope_theta, hf.rope_scaling = hf.rope_local_base_freq, {"rope_type": "default"}
        rope = type(rope)(config=hf)
    if hf.model_type.endswith("_text") and "mrope_section" in (getattr(hf, "rope_parameters", None) or {}):
        positions = positions.expand(3, *positions.shape)
    out = rope(torch.zeros(1, 1, 1, 2), positions, *([layer] if layer in ("full_attention", "sliding_attention") else []))
    prefix = f"{layer}_" if hasattr(rope, f"{layer}_inv_freq") else ""
    angles = getattr(rope, f"{prefix}inv_freq")
    scale = getattr(rope, f"{prefix}attention_scaling")
    if isinstance(out, torch.Tensor):  # deepseek_v2: complex numbers
        out = (out.real, out.imag)
    out = tuple(x[0] if x.ndim == 4 else x for x in out)
    half = len(angles)
    cos, sin = (angles.cos() * scale, angles.sin() * scale)
    pairs = slice(0, None, 2) if rope.__class__.__name__.startswith("Cohere") else slice(half)
    assert torch.allclose(out[0][0, 1, pairs], cos) and torch.allclose(out[1][0, 1, pairs], sin)
    return cos, sin, (out[0][:, :1], out[1][:, :1])


def run_mlx(config):
    import mlx.core as mx
    from mlx_lm.utils import MODEL_REMAPPING

    model_type = MODEL_REMAPPING.get(config["model_type"], config["model_type"])
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    if "text_config" in config:
        layers = module.Model(module.ModelArgs.from_dict(config)).layers
        ropes = [layer.self_attn.rope for layer in layers if hasattr(layer, "self_attn")]
        made = mlx_reading(mx, ropes[-1], dims_of(ropes[-1], config["text_config"]))
        others = mlx_reading(mx, ropes[0], dims_of(ropes[0], config["text_config"]))
        return made | ({"others": others} if model_type == "gemma3" else {})
    asked = {"rope_theta", "head_dim", "partial_rotary_factor", "rotary_pct", "rotary_emb_base", "max_position_embeddings"}
    asked |= {"rope_scaling", "sliding_window_pattern"}
    required = [f.name for f in dataclasses.fields(module.ModelArgs) if f.default is f.default_factory is dataclasses.MISSING]
    args = module.ModelArgs.from_dict({name: 1 for name in required if name not in asked} | config)
    if model_type == "smollm3":
        module = importlib.import_module("mlx_lm.models.llama")
    (attention,) = [c for n, c in vars(module).items() if n.endswith(("Attention", "AttentionBlock")) and c.__module__ == module.__name__]
    several = len(inspect.signature(attention).parameters) > 1  # it is told its layer
    layers = {"gemma3_text": (5, 0), "olmo3": (3, 0), "exaone4": ("all",)}.get(model_type, (0,) if several else (None,))
    told = [() if layer is None else (None,) if layer == "all" else (layer,) for layer in layers]
    ropes = [attention(args, *layer).rope for layer in told]
    made = [mlx_reading(mx, rope, dims_of(rope, config)) for rope in ropes]
    return beside_pairs(
        made[0] | ({"others": made[1]} if len(made) > 1 else {}), config, mlx_turned(mx, ropes[0], dims_of(ropes[0], config))
    )


def mlx_turned(mx, rope, dims):
    """What becomes of the first number of a head."""
    return rope(mx.array([[[[1.0] + [0.0] * (dims - 1)]]]), offset=1)[0, 0, 0].tolist()


def dims_of(rope, config):
    return getattr(rope, "dims", None) or getattr(rope, "dim", None) or config["hidden_size"] // config["num_attention_heads"]


def mlx_reading(mx, rope, dims):
    """Pairs are halves, or neighbours where the model is of the traditional kind; those rotated are (1, 0)."""
    half = dims // 2
    if getattr(rope, "traditional", False):
        x = mx.array([[[[1.0, 0.0] * half]]])
        out = rope(x, offset=1)[0, 0, 0].tolist()
        return reading(out[::2], out[1::2], None)
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


def turned(built, hf, head):
    """Five tokens turned, each by three positions where the model has those (vLLM `uses_mrope`, SGLang `model_is_mrope`)."""
    import torch

    if "mrope_section" in hf.rope_parameters:
        q = torch.ones(5, hf.num_attention_heads * head)
        getattr(built, "forward_native", built.forward)(torch.arange(5).expand(3, 5), q.clone(), q.clone())


def beside_pairs(made, config, out):
    """`made`, and which pairs of a head turned, where it is not those that the model turns: `out` is what became of its first number."""
    assert (out[1] != 0) != (out[made["pairs"]] != 0)
    turned = "halves" if out[1] == 0 else "neighbours"
    return made | ({} if (turned == "neighbours") == (config["model_type"] in NEIGHBOURS) else {"turned": turned})


def torch_turned(built, head):
    import torch

    x = torch.zeros(1, head)
    x[0, 0] = 1.0
    return getattr(built, "forward_native", built.forward)(torch.tensor([1]), x.clone(), x.clone())[0].flatten()


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
        whole = hf_config(config)
        hf = whole.get_text_config()
        for part in (whole, hf, *(getattr(whole, name) for name in getattr(whole, "sub_configs", ()))):  # as get_config does
            scope["patch_rope_parameters"](part)
        derived = scope["derive_max_model_len_and_key"](types.SimpleNamespace(hf_text_config=hf))
        arch = types.SimpleNamespace(derived_max_model_len_and_key=derived)
        context = scope["_get_and_verify_max_len"](hf, arch, None, None, False, None)
        state.model_config.max_model_len = context
        head = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
        rope._ROPE_DICT.clear()
        if hf.model_type == "gemma3_text":  # models/gemma3.py: Gemma3Attention
            full, others = (table_of(hf, head, hf.rope_parameters[f"{name}_attention"], context) for name in ("full", "sliding"))
            return full | {"others": others | {"context": None}}
        return table_of(hf, head, hf.rope_parameters, context)

    def table_of(hf, head, parameters, context):
        times = 1 if hf.model_type.startswith("qwen3") else 4  # models/qwen3_vl.py: mrope_positions_factor, unless video is pruned
        neox = hf.model_type not in NEIGHBOURS - AFTERWARDS
        built = rope.get_rope(head, hf.max_position_embeddings, neox, parameters, torch.float32, None, times)
        turned(built, hf, head)
        if hasattr(built, "long_short_cos_sin_cache"):
            offset = built.original_max_position_embeddings if built.use_long_rope else 0
            made = from_cache(built.long_short_cos_sin_cache, offset + 1, context)
        else:
            made = from_cache(built.cos_sin_cache, 1, context)
        if "mrope_section" in hf.rope_parameters:
            return made
        if hf.model_type in AFTERWARDS:
            built.is_neox_style = False
        return beside_pairs(made, {"model_type": hf.model_type}, torch_turned(built, head))

    return run, version_of(root, "vllm")


def sglang(root):
    import torch

    package = "sglang.srt.layers.rotary_embedding"
    special = {"publish_role": lambda: None, "is_cpu": lambda: True}
    own = {f"sglang.srt.configs.{name}" for name in ("qwen3_5", "qwen3_next", "qwen3_vl")}
    sys.meta_path.insert(0, Stubs(root, {"sglang", "sgl_kernel", "vllm", "triton"}, {package, *own}, special))
    qwen = importlib.import_module("sglang.srt.configs.qwen3_5")  # in place of transformers' (common.py: _CONFIG_REGISTRY)
    classes = {"qwen3_5": qwen.Qwen3_5Config, "qwen3_5_moe": qwen.Qwen3_5MoeConfig}
    torch.compile = lambda f=None, **options: f or (lambda g: g)
    factory = importlib.import_module(package + ".factory")
    base = Path(root) / "sglang/srt"
    common = base / "utils/hf_transformers/common.py"
    assigned = [node for node in ast.parse(common.read_text()).body if isinstance(node, ast.Assign)]
    keys = next(ast.literal_eval(n.value) for n in assigned if getattr(n.targets[0], "id", "") == "CONTEXT_LENGTH_KEYS")
    scope = {"CONTEXT_LENGTH_KEYS": keys, "torch": torch, "PretrainedConfig": importlib.import_module("transformers").PretrainedConfig}
    functions(base / "utils/hf_transformers_patches.py", {"normalize_rope_scaling_compat"}, scope)
    length = functions(common, {"get_context_length", "get_hf_text_config", "_patch_text_config"}, scope)

    def run(config):  # the lines between config and get_rope are models/llama.py, LlamaDecoderLayer and LlamaAttention
        rest = dict(config)
        own = classes.get(rest.pop("model_type"))
        hf = length["get_hf_text_config"](own(**rest) if own else hf_config(config))
        context = length["get_context_length"](hf)
        parameters = hf.rope_parameters
        if getattr(hf, "original_max_position_embeddings", None):
            parameters["original_max_position_embeddings"] = hf.original_max_position_embeddings
        head = getattr(hf, "head_dim", hf.hidden_size // hf.num_attention_heads)
        factory._ROPE_DICT.clear()
        rotary = int(getattr(hf, "partial_rotary_factor", 1) * head)
        theta = parameters.get("rope_theta", getattr(hf, "rope_theta", 10000))  # common.py: get_rope_config
        neox = hf.model_type not in NEIGHBOURS
        neox = getattr(hf, "rope_is_neox_style", neox) if hf.model_type in ASK_PAIRS else neox
        built = factory.get_rope(head, rotary, hf.max_position_embeddings, theta, neox, parameters, torch.float32)
        turned(built, hf, head)
        if hasattr(built, "long_short_cos_sin_cache"):
            beyond = context - 1 > built.original_max_position_embeddings
            row = built.original_max_position_embeddings * beyond + 1
            return from_cache(built.long_short_cos_sin_cache, row, context)
        made = from_cache(built.cos_sin_cache, 1, context)
        return made if "mrope_section" in parameters else beside_pairs(made, config, torch_turned(built, head))

    return run, version_of(root, "sglang")


def exllamav3(root):
    import torch

    special = {"exllamav3_ext": Nothing()}
    real = {"exllamav3.util.rope", "exllamav3.util.file", "exllamav3.model.config", "exllamav3.architecture"}
    sys.meta_path.insert(0, Stubs(root, {"exllamav3"}, real, special))
    spec = importlib.util.spec_from_file_location("exllamav3.util.rope", Path(root) / "exllamav3/util/rope.py")
    rope = importlib.util.module_from_spec(spec)
    sys.modules["exllamav3.util.rope"] = rope
    spec.loader.exec_module(rope)
    scope = {"no_default": object(), "cast": lambda t, x: x, "T": object, "RopeSettings": rope.RopeSettings}
    functions(Path(root) / "exllamav3/util/file.py", {"read_dict"}, scope)
    functions(Path(root) / "exllamav3/model/config.py", {"read_rope_settings_default"}, scope)

    def table_of(settings, context):
        sin, cos = rope.RoPE("cpu", settings).compute_sincos(torch.tensor([0, 1]))
        half = cos.shape[-1] // 2
        return reading(cos[1, :half], sin[1, :half], context)

    def run_nested(config):
        """The class of the architecture reads the folder: what sees last, which is not there."""
        file = {"qwen3_5_moe": "qwen3_5"}.get(config["model_type"], config["model_type"])
        found = vars(importlib.import_module(f"exllamav3.architecture.{file}")).values()
        kind = next(c for c in found if getattr(c, "arch_string", "") == config["architectures"][0])
        made = kind.__new__(kind)
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(FileNotFoundError, ValueError):
            Path(folder, "config.json").write_text(json.dumps(config))
            made.__init__(folder)
        if config["model_type"] != "gemma3":
            return table_of(made.rope_settings, made.max_position_embeddings)
        others = table_of(made.rope_settings_local, None)
        return table_of(made.rope_settings_global, made.max_position_embeddings) | {"others": others}

    def run(config):
        if "text_config" in config:
            return run_nested(config)
        context = scope["read_dict"](config, int, "max_position_embeddings", 8192)
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        self = types.SimpleNamespace(config_dict=config, head_dim=head)
        return table_of(scope["read_rope_settings_default"](self, rope.RopeStyle.NEOX), context)

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
    made = json.loads(OUT.read_text()) if OUT.exists() else {"readers": {}}
    readers, families = made["readers"], made.get("families", {"readers": {}})["readers"]
    readers[runtime] = {"version": version, "readings": readings_of(runtime, version, run, configs())}
    if runtime in RUN_FOR:
        grid = {name: config for name, config in family_configs().items() if config["model_type"] in RUN_FOR[runtime]}
        families[runtime] = {"version": version, "readings": readings_of(runtime, version, run, grid)}
    if runtime in NESTED_FOR:
        grid = {name: config for name, config in nested_configs().items() if config["model_type"] in NESTED_FOR[runtime]}
        nested = json.loads(OUT_NESTED.read_text())["readers"] if OUT_NESTED.exists() else {}
        nested[runtime] = {"version": version, "readings": readings_of(runtime, version, run, grid)}
        OUT_NESTED.write_text(layout({"made by": "tools/make_readers.py", "configs": nested_configs(), "readers": nested}) + "\n")
    whole = {"made by": "tools/make_readers.py", "configs": configs(), "readers": readers}
    OUT.write_text(layout(whole | {"families": {"configs": family_configs(), "readers": families}}) + "\n")


def readings_of(runtime, version, run, grid):
    """name -> what this runtime made of that config, or its error."""
    readings = {}
    for name, config in grid.items():
        try:
            readings[name] = run(json.loads(json.dumps(config)))
        except Exception as error:  # the runtime refuses: that is a reading too
            readings[name] = {"error": f"{type(error).__name__}: {str(error)[:160]}"}
        print(runtime, version, name, {k: v for k, v in readings[name].items() if k != "inv_freq"})
    return readings


def layout(value, depth=0):
    """JSON with one config and one reading to a line."""
    if not isinstance(value, dict) or not {"hidden_size", "text_config"}.isdisjoint(value) or not {"inv_freq", "error"}.isdisjoint(value):
        return json.dumps(value)
    pad = "  " * (depth + 1)
    lines = [f"{pad}{json.dumps(key)}: {layout(item, depth + 1)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"


if __name__ == "__main__":
    main(*sys.argv[1:])
