"""A target to serve, of the options of `cloud-verifier serve`: its engine and its text."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from cloud_verifier.engines.self_scheduling import Engine
from cloud_verifier.model_source import LLAMA, VLLM, engine_of, gguf_file
from cloud_verifier.serving.text_codec import TextCodec
from outrider_models.runtime_build import build_risk

log = logging.getLogger(__name__)


def open_target(model: str, options: Mapping[str, Any]) -> tuple[Engine, TextCodec]:
    """Load what --model names with the engine for it. Raises ModelError, ModelSourceError and TextError."""
    engine = engine_of(model, options["engine"])
    if engine == LLAMA:
        return _llama_cpp(model, options)
    return _vllm(model, options) if engine == VLLM else _torch(model, options)


def _torch(model: str, options: Mapping[str, Any]) -> tuple[Engine, TextCodec]:
    from cloud_verifier.engines.torch_engine import load
    from cloud_verifier.serving.codec import Codec

    codec = Codec(model)
    engine = load(
        model,
        device=options["device"],
        dtype=options["dtype"],
        strict=options["strict"],
        max_sequences=options["max_sessions"],
        context_limit=options["max_model_len"],
        threads=options["threads"],
        kv_cache_gib=options["kv_cache_gib"],
        gpu_memory_share=options["gpu_memory_share"],
        cuda_graphs=options["cuda_graphs"],
        remember=True,
    )
    return engine, codec


def _llama_cpp(model: str, options: Mapping[str, Any]) -> tuple[Engine, TextCodec]:
    from cloud_verifier.engines.llama_cpp.load import LlamaCppSettings, load
    from cloud_verifier.serving.gguf_codec import GgufCodec

    if options["dtype"] != "auto":
        log.warning("--dtype is for transformers models; %s has the numbers of its quantization", model)
    if risk := build_risk():
        log.warning("llama.cpp: %s", risk)
    on_cpu = options["device"] == "cpu"
    settings = LlamaCppSettings(
        gpu_layers=0 if on_cpu and options["gpu_layers"] is None else options["gpu_layers"],
        threads=options["threads"],
        strict=options["strict"],
        max_sequences=options["max_sessions"],
        context_limit=options["max_model_len"],
        kv_cache_gib=options["kv_cache_gib"],
        remember=True,
    )
    engine = load(gguf_file(model), settings)
    return engine, GgufCodec(engine.model.text)


def _vllm(model: str, options: Mapping[str, Any]) -> tuple[Engine, TextCodec]:
    from cloud_verifier.engines.vllm.load import load
    from cloud_verifier.engines.vllm.options import VllmSettings, parse_extra
    from cloud_verifier.serving.codec import Codec

    codec = Codec(model)
    settings = VllmSettings(
        dtype=options["dtype"],
        quantization=options["quantization"],
        tensor_parallel_size=options["tensor_parallel_size"] or 1,
        threads=options["threads"],
        strict=options["strict"],
        max_sequences=options["max_sessions"],
        context_limit=options["max_model_len"],
        kv_cache_gib=options["kv_cache_gib"],
        gpu_memory_share=options["gpu_memory_share"],
        cuda_graphs=options["cuda_graphs"],
        extra=parse_extra(options["vllm_option"]),
    )
    return load(model, settings), codec
