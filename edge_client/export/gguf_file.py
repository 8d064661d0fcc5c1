"""A transformers folder as one GGUF file for llama.cpp, for the families listed in `FAMILIES`.

What the families share is in the `gguf` package: the names of tensors and of metadata. What is theirs is here:
llama.cpp rotates neighbouring pairs of a Llama head's channels where transformers rotates the two halves, so the rows
of those projections change places; Gemma's norms count from one; GPT-2's matrices are transposed.
"""

from __future__ import annotations

import ctypes
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edge_client.export.gguf_tokenizer import add_tokenizer

FLOATS = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}
QUANTIZED = ("q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q2_k", "iq4_nl", "iq4_xs")
Tensor = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Family:
    """architecture: llama.cpp's. pairs: query and key rows change places. norm_shift: added to norms' weights.

    transposed: matrices are stored [in, out]. rotary: positions are rotated in, not added as an embedding.
    """

    architecture: gguf.MODEL_ARCH
    pairs: bool = False
    norm_shift: float = 0.0
    transposed: bool = False
    rotary: bool = True


FAMILIES = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, pairs=True),
    "mistral": Family(gguf.MODEL_ARCH.LLAMA, pairs=True),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3),
    "gemma": Family(gguf.MODEL_ARCH.GEMMA, norm_shift=1.0),
    "gemma3_text": Family(gguf.MODEL_ARCH.GEMMA3, norm_shift=1.0),
    "gpt2": Family(gguf.MODEL_ARCH.GPT2, transposed=True, rotary=False),
}


def export_gguf(model_folder: Path, output: Path, quantize: str = "q8_0") -> None:
    """Write `output` from the transformers folder `model_folder`. quantize: f32, f16 or one of `QUANTIZED`.

    Raises ValueError if the model or its tokenizer is of a kind that this file does not know, and RuntimeError if
    llama.cpp cannot quantize it.
    """
    if quantize not in (*FLOATS, *QUANTIZED):
        raise ValueError(f"unknown quantization {quantize!r} for GGUF; known are {', '.join((*FLOATS, *QUANTIZED))}")
    if quantize in FLOATS:
        _write(model_folder, output, quantize)
        return
    with tempfile.TemporaryDirectory() as scratch:
        full = Path(scratch) / "full.gguf"
        _write(model_folder, full, "f32")
        _quantize(full, output, quantize)


def _quantize(full: Path, output: Path, quantize: str) -> None:
    from llama_cpp import llama_cpp  # compiled, and not needed for the float types

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantize.upper()}")
    params.nthread = torch.get_num_threads()
    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)  # a line per tensor otherwise
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    _KEPT_ALIVE.append(quiet)
    status = llama_cpp.llama_model_quantize(str(full).encode(), str(output).encode(), ctypes.byref(params))
    if status != 0:
        raise RuntimeError(f"llama.cpp could not quantize to {quantize}: status {status}")


_KEPT_ALIVE: list[Any] = []  # llama.cpp keeps a bare pointer to the log's callback


def _write(model_folder: Path, output: Path, dtype: str) -> None:
    config: Any = AutoConfig.from_pretrained(model_folder)
    family = _family(config)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, output_loading_info=True)
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"{model_folder} lacks weights that its config.json promises: {', '.join(missing[:3])}")
    writer = gguf.GGUFWriter(output, gguf.MODEL_ARCH_NAMES[family.architecture])
    try:
        writer.add_file_type(FLOATS[dtype])
        _add_shape(writer, model.config, family, model_folder.name)
        add_tokenizer(writer, model_folder, config.vocab_size)
        for name, tensor in _tensors(model, family):
            half = dtype == "f16" and tensor.ndim == 2
            writer.add_tensor(name, tensor.astype(np.float16) if half else tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _family(config: Any) -> Family:
    """Raises ValueError for what could not be said in GGUF, before anything is written."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"models of type {config.model_type!r} are not exported to GGUF; known are {', '.join(FAMILIES)} "
            "(llama.cpp's own convert_hf_to_gguf.py knows more)"
        )
    if family.rotary and _rope(config)["rope_type"] not in ("default", "linear", "llama3"):
        raise ValueError(
            f"rotary embeddings of type {_rope(config)['rope_type']!r} are not exported; "
            "expected 'default', 'linear' or 'llama3'"
        )
    if getattr(config, "mlp_bias", False):
        raise ValueError("a feed-forward network with a bias is not exported; expected a model without mlp_bias")
    if config.model_type == "gemma3_text":
        _check_gemma3(config)
    if getattr(config, "use_sliding_window", False):
        raise ValueError("sliding windows are not exported; expected a model with use_sliding_window off")
    return family


def _rope(config: Any, kind: str = "full_attention") -> dict[str, Any]:
    """The rotary embedding's parameters; Gemma 3 has some for each kind of layer."""
    everything: dict[str, Any] = config.rope_parameters
    parameters: dict[str, Any] = everything.get(kind, everything)
    return parameters


def _check_gemma3(config: Any) -> None:
    """llama.cpp has Gemma 3's regularities built in: which layers look at everything, and how heads are scaled."""
    regular = [
        "full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(len(config.layer_types))
    ]
    if config.layer_types != regular or config.query_pre_attn_scalar != config.head_dim:
        raise ValueError(
            "this Gemma 3 is not exported; expected every sixth layer with full attention, and usual scales"
        )


def _add_shape(writer: gguf.GGUFWriter, config: Any, family: Family, name: str) -> None:
    """config: of a loaded model, whose optional fields are set."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    if not family.rotary:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = _rope(config)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(_rope(config, "sliding_attention")["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _tensors(model: Any, family: Family) -> Iterator[tuple[str, Tensor]]:
    """GGUF names and float32 arrays; a tied head has no tensor of its own."""
    config = model.config
    names = gguf.get_tensor_name_map(family.architecture, config.num_hidden_layers)
    heads = config.num_attention_heads
    rows = {"q_proj": heads, "k_proj": getattr(config, "num_key_value_heads", None) or heads}
    if family.rotary and _rope(config)["rope_type"] == "llama3":
        yield "rope_freqs.weight", _llama3_divisors(config)
    for theirs, value in model.state_dict().items():
        if config.tie_word_embeddings and theirs == "lm_head.weight":
            continue
        if theirs.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")):
            continue  # constants that older files hold
        ours = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        if ours is None:
            raise ValueError(f"the tensor {theirs} is not exported: GGUF's {family.architecture.name} has none like it")
        tensor: Tensor = value.float().numpy()
        projection = theirs.split(".")[-2]
        if family.pairs and projection in rows:
            tensor = _halves_to_pairs(tensor, rows[projection])
        if family.norm_shift and "norm" in projection:
            tensor = tensor + np.float32(family.norm_shift)
        if family.transposed and projection in ("c_attn", "c_fc", "c_proj") and tensor.ndim == 2:
            tensor = np.ascontiguousarray(tensor.T)
        yield ours, tensor


def _halves_to_pairs(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from (x1..xn, y1..yn) to (x1, y1, ..., xn, yn). Shape [heads * head_size, ...]."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def _llama3_divisors(config: Any) -> Tensor:
    """What llama.cpp divides each rotation's frequency by: Llama 3's bands of wavelengths, shape [head_size/2]."""
    rope = _rope(config)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = rope["rope_theta"] ** -(np.arange(0, head_size, 2) / head_size)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)  # 0: stretched by the factor; 1: as it is
    divisors: Tensor = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return divisors
