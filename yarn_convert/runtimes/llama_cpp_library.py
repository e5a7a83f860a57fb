"""A llama.cpp of the user's own in llama-cpp-python, for the worker: whether its structs are those that llama-cpp-python has, what it is,
and which devices it has. Imports nothing but the standard library.

llama-cpp-python's structs are those of one llama.cpp. Another one's may have a field more, and then what is set goes to the wrong place, or
memory is written that is nobody's. So its own defaults are asked for, into a place with room for much more: each has to stand at the
field where llama-cpp-python would look for it, and they have to end where its struct ends.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOM = 4096  # bytes for a struct, which have some hundred
LIBRARY = re.compile(r"(lib)?(llama|ggml)[^/\\]*\.(so|dylib|dll)[.\d]*$")
KINDS = ("CPU", "GPU", "IGPU", "ACCEL", "META")  # ggml-backend.h, ggml_backend_dev_type
CPU, ACCEL = "CPU", "ACCEL"
NAMES = {  # ctypes' name of each function that returns a struct -> the struct, and its arguments
    "llama_model_default_params": ("llama_model_params", ()),
    "llama_context_default_params": ("llama_context_params", ()),
    "llama_batch_init": ("llama_batch", (8, 0, 1)),
}
# What llama.cpp says there (src/llama-model.cpp, src/llama-context.cpp, src/llama-batch.cpp), of fields that have had one value for years:
# a number, False for a null pointer, True for one that is none.
KNOWN: dict[str, dict[str, Any]] = {
    "llama_model_params": {
        "devices": False, "split_mode": 1, "main_gpu": 0, "tensor_split": False, "progress_callback": False, "kv_overrides": False,
        "vocab_only": 0, "check_tensors": 0, "use_extra_bufts": 1, "no_host": 0, "no_alloc": 0,
    },
    "llama_context_params": {
        "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "rope_scaling_type": -1, "pooling_type": -1, "attention_type": -1,
        "flash_attn_type": -1, "rope_freq_base": 0, "rope_freq_scale": 0, "yarn_ext_factor": -1, "yarn_orig_ctx": 0, "defrag_thold": -1,
        "cb_eval": False, "type_k": 1, "type_v": 1, "abort_callback": False, "embeddings": 0, "offload_kqv": 1, "no_perf": 1,
        "op_offload": 1, "swa_full": 1, "kv_unified": 0, "samplers": False, "n_samplers": 0,
    },
    "llama_batch": {"n_tokens": 0, "token": True, "embd": False, "pos": True, "n_seq_id": True, "seq_id": True, "logits": True},
}  # fmt: skip
VERSION = "import llama_cpp.llama_cpp as m; from llama_cpp_library import version_of; print(*version_of(m._lib))"


class Unfit(Exception):
    """A library that llama-cpp-python cannot be run with; the message says why."""


def load(folder: Path) -> Any:
    """llama-cpp-python over the library in `folder`, which LLAMA_CPP_LIB_PATH has to name. Unfit where it cannot be."""
    try:
        import llama_cpp
    except AttributeError as e:  # ctypes, of a function that is not in it
        raise Unfit(f"it is no llama.cpp that this llama-cpp-python knows: {_symbol(e)}") from None
    except (OSError, RuntimeError) as e:
        _, _, why = str(e).partition("': ")
        raise Unfit(f"it cannot be loaded: {why or e}") from None
    library = llama_cpp.llama_cpp._lib
    if Path(library._name).resolve().parent != folder.resolve():
        raise Unfit(f"{library._name} was loaded in its place")
    if why := unlike(llama_cpp.llama_cpp):
        raise Unfit(why)
    ggml = ggml_of(library, folder)
    if not ggml.ggml_backend_dev_count():  # built with backends in files of their own, as llama.cpp's releases are
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
    if not ggml.ggml_backend_dev_count():
        raise Unfit("it has no backend, not even the CPU's")
    return llama_cpp


def _symbol(e: AttributeError) -> str:
    found = re.search(r"undefined symbol: (\w+)|symbol not found.*?(\w+)|function '(\w+)'", str(e))
    return f"{next(filter(None, found.groups()))} is not in it" if found else str(e)


# -- its structs ------------------------------------------------------------------------------------------------------


def unlike(m: Any) -> str:
    """Why the structs of `m`, the module llama_cpp.llama_cpp, are not those of its library; "" if they are."""
    for function, (name, arguments) in NAMES.items():
        struct = getattr(m, name)
        found, end = returned(m._lib, function, struct, arguments)
        for field, value in KNOWN[name].items():
            if hasattr(found, field) and not _is(getattr(found, field), value):
                return f"its {name} is not llama-cpp-python's: at {field} stands {_shown(getattr(found, field))}, not {_shown(value)}"
        if between := _between(found, end):
            return f"its {name} has something at byte {between}, where llama-cpp-python's has nothing"
        if end is not None and not ctypes.sizeof(struct) - 8 < end <= ctypes.sizeof(struct):  # but for what fills up the last 8 bytes
            return f"its {name} has {end} bytes, and llama-cpp-python's {ctypes.sizeof(struct)}"
        if function == "llama_batch_init":
            m.llama_batch_free(found)
    if not _pointed() and (own := " ".join(version_of(m._lib))) != (installed := _installed()):
        return f"on {platform.machine()} only llama-cpp-python's own version can be told to fit, {installed}, and it is {own}"
    return ""


def returned(library: Any, function: str, struct: Any, arguments: tuple[int, ...]) -> tuple[Any, int | None]:
    """(the struct that a function of the library returns, as `struct`; how many bytes of it were written, where that can be seen)."""
    address, numbers = ctypes.cast(library[function], ctypes.c_void_p).value or 0, [ctypes.c_int32] * len(arguments)
    if not _pointed():
        large = type("Large", (ctypes.Structure,), {"_fields_": [("own", struct), ("rest", ctypes.c_char * ROOM)]})
        return ctypes.CFUNCTYPE(large, *numbers)(address)(*arguments).own, None
    places = []
    for fill in (0x00, 0xFF):  # what is the same in both was written
        place = ctypes.create_string_buffer(bytes([fill]) * ROOM, ROOM)
        ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, *numbers)(address)(ctypes.addressof(place), *arguments)
        places.append(place.raw)
    written = [i for i, (a, b) in enumerate(zip(*places, strict=True)) if (a, b) != (0x00, 0xFF)]
    return struct.from_buffer_copy(places[0]), written[-1] + 1 if written else 0


def _between(found: Any, end: int | None) -> int:
    """The first byte that says something and is of no field; 0 where there is none, or it cannot be seen."""
    known = {i for name, *_ in found._fields_ if (f := getattr(type(found), name)) for i in range(f.offset, f.offset + f.size)}
    return 0 if end is None else next((i for i, byte in enumerate(bytes(found)) if byte and i not in known), 0)


def _pointed() -> bool:
    """Whether a function gets the place of a large struct that it returns as its first argument."""
    return platform.machine().lower() in ("x86_64", "amd64")


def _is(found: Any, value: Any) -> bool:
    return bool(found) == value if isinstance(value, bool) else found == value


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else "a pointer" if value else "none"


def _installed() -> str:
    """The version of the library that came with llama-cpp-python."""
    env = {k: v for k, v in os.environ.items() if k not in ("LLAMA_CPP_LIB_PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [env.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-c", VERSION], capture_output=True, text=True, check=False, env=env)
    return done.stdout.strip()


# -- what it is -------------------------------------------------------------------------------------------------------


def version_of(library: Any) -> tuple[str, str]:
    """(llama.cpp's version, or that of its ggml; the commit), "" for what it does not say."""
    said = {}
    for name in ("llama_version", "ggml_version", "ggml_commit"):
        try:
            function = library[name]
        except AttributeError:
            continue
        function.restype = ctypes.c_char_p
        said[name] = (function() or b"").decode("utf-8", "replace")
    return said.get("llama_version") or said.get("ggml_version", ""), said.get("ggml_commit", "")


def about(library: Any, folder: Path) -> dict[str, Any]:
    """The library's name, version, commit and the SHA-256 of each of its files: those that this process has loaded, where the system says
    that, else those beside it."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text("utf-8", "replace").splitlines() if maps.exists() else []
    files = [Path(line.split(maxsplit=5)[5]) for line in lines if len(line.split(maxsplit=5)) == 6]
    files = [p for p in dict.fromkeys(files) if LIBRARY.search(p.name)] or [p for p in sorted(folder.iterdir()) if LIBRARY.search(p.name)]
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files, key=lambda p: p.name)}
    version, commit = version_of(library)
    return {"name": Path(library._name).resolve().name, "version": version, "commit": commit, "sha256": digests}


def ggml_of(library: Any, folder: Path) -> Any:
    """The functions of ggml by ctypes: of the library itself, or of the one beside it, where a handle does not lead to another's."""
    try:
        library["ggml_backend_dev_count"]
        found = library
    except AttributeError:
        found = ctypes.CDLL(str(next(p for p in sorted(folder.iterdir()) if re.fullmatch(r"(lib)?ggml\.(so|dylib|dll)", p.name))))
    for name, kind, arguments in (
        ("dev_count", ctypes.c_size_t, []), ("dev_get", ctypes.c_void_p, [ctypes.c_size_t]),
        ("dev_name", ctypes.c_char_p, [ctypes.c_void_p]), ("dev_description", ctypes.c_char_p, [ctypes.c_void_p]),
        ("dev_type", ctypes.c_int, [ctypes.c_void_p]), ("dev_buffer_type", ctypes.c_void_p, [ctypes.c_void_p]),
        ("buffer_get_type", ctypes.c_void_p, [ctypes.c_void_p]), ("reg_count", ctypes.c_size_t, []),
        ("reg_get", ctypes.c_void_p, [ctypes.c_size_t]), ("reg_name", ctypes.c_char_p, [ctypes.c_void_p]),
        ("reg_dev_count", ctypes.c_size_t, [ctypes.c_void_p]),
    ):  # fmt: skip
        function = getattr(found, f"ggml_backend_{name}")
        function.restype, function.argtypes = kind, arguments
    found.ggml_op_desc.restype, found.ggml_op_desc.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    return found


def devices(ggml: Any) -> list[dict[str, Any]]:
    """Its devices: name, what it says of itself, and one of KINDS; `handle` is for this process alone."""
    found = []
    for i in range(ggml.ggml_backend_dev_count()):
        handle = ggml.ggml_backend_dev_get(i)
        kind, name, says = (getattr(ggml, f"ggml_backend_dev_{what}")(handle) for what in ("type", "name", "description"))
        found.append({"name": name.decode(), "description": says.decode("utf-8", "replace").strip(), "kind": KINDS[kind], "handle": handle})
    return found


def idle(ggml: Any) -> list[str]:
    """The names of its backends that list no device here: as Vulkan's where no driver is, or a driver of software alone."""
    backends = [ggml.ggml_backend_reg_get(i) for i in range(ggml.ggml_backend_reg_count())]
    return [ggml.ggml_backend_reg_name(b).decode() for b in backends if not ggml.ggml_backend_reg_dev_count(b)]
