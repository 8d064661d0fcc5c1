"""Opening a model as a target: from a folder or a hub id to an engine that was tried before it serves anyone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from cloud_verifier.engines.base import Block, EngineInfo, ModelError, Sampler
from cloud_verifier.engines.remembered import Remembered
from cloud_verifier.engines.self_test import branches_agree, quick_check, self_test
from cloud_verifier.engines.torch_engine.cpu_decoder import CpuDecoder, joined
from cloud_verifier.engines.torch_engine.engine import TorchEngine
from cloud_verifier.engines.torch_engine.fast_path import Parts, find_parts
from cloud_verifier.engines.torch_engine.layout import TILE_ROWS
from cloud_verifier.engines.torch_engine.llama_like import why_not
from cloud_verifier.engines.torch_engine.memory import GIB, GPU_MEMORY_SHARE, MemoryTooSmall, pages_within
from cloud_verifier.engines.torch_engine.packing import Packing
from cloud_verifier.engines.torch_engine.pool import LayerShape, PagePool, layer_shapes
from cloud_verifier.engines.torch_engine.product_choice import Choice, choose
from cloud_verifier.engines.torch_engine.row_rules import CPU_RULES, RowRule, strict_row_rules
from cloud_verifier.engines.torch_engine.tile_rows import least_tile_rows
from cloud_verifier.model_source import ModelSourceError, check_path
from speculation.sampling import SamplingParams

_log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WAYS = ("fused", "packed", "transformers")  # layers in few calls; as transformers has them, on packed weights or not
SHORTEST_CONTEXT = 16
TRIAL_TOKENS = 80  # more than a page, and more than the smallest windows
# The share of the logits' spread by which the packed forward may differ from the model's own. A wrong mask or a wrong
# position makes it of the order of 1; rounding, of the order of the precision times the square root of the depth.
TOLERANCE = {torch.float32: 0.005, torch.float16: 0.05, torch.bfloat16: 0.1}


def load(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    strict: bool = True,
    max_sequences: int = 32,
    context_limit: int | None = None,
    threads: int | None = None,
    kv_cache_gib: float | None = None,
    gpu_memory_share: float = GPU_MEMORY_SHARE,
    cuda_graphs: bool = True,
    remember: bool = False,
) -> TorchEngine:
    """Open a causal LM.

    model: a local folder as `save_pretrained` writes it, or a hub id (HF_HUB_OFFLINE is respected). device: "auto"
    (CUDA if there is one), "cpu", "cuda", "cuda:1". dtype: "auto" (on a GPU bfloat16, on a CPU float32),
    "float32", "bfloat16", "float16". context_limit: at most so many tokens per sequence, which the model must be made
    for. threads: CPU threads of this process, None to leave as they are. kv_cache_gib, gpu_memory_share: see `memory`.
    cuda_graphs, remember: see `wrap`. Raises ModelError.
    """
    if max_sequences < 1:
        raise ModelError(f"max_sequences is {max_sequences}; it must be at least 1.")
    if threads is not None:
        if threads < 1:
            raise ModelError(f"threads is {threads}; it must be at least 1.")
        torch.set_num_threads(threads)
    place = _device(device)
    if dtype == "auto":
        dtype = "float32" if place.type == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise ModelError(f'dtype is "{dtype}"; it must be "auto" or one of {", ".join(DTYPES)}.')
    opened = _open(model, DTYPES[dtype], context_limit)
    try:
        torch.nn.Module.to(opened, place)
    except torch.OutOfMemoryError as error:
        weights = sum(tensor.nbytes for tensor in [*opened.parameters(), *opened.buffers()])
        raise ModelError(
            f"The weights of {model} take {weights / GIB:.3g} GiB, which are not free on {place}; stop what else uses "
            "it, or take a smaller model."
        ) from error
    return wrap(
        opened,
        name=Path(model).name if Path(model).is_dir() else model,
        strict=strict,
        max_sequences=max_sequences,
        context_limit=context_limit,
        kv_cache_gib=kv_cache_gib,
        gpu_memory_share=gpu_memory_share,
        cuda_graphs=cuda_graphs,
        remember=remember,
    )


def wrap(
    model: PreTrainedModel,
    *,
    name: str,
    strict: bool = True,
    max_sequences: int = 32,
    context_limit: int | None = None,
    kv_cache_gib: float | None = None,
    gpu_memory_share: float = GPU_MEMORY_SHARE,
    parts: Parts | None = None,
    cuda_graphs: bool = True,
    products: str | None = "auto",
    remember: bool = False,
) -> TorchEngine:
    """An engine on a model that is already in memory, on its device and in its dtype. Raises ModelError.

    The model is compared with its own plain forward, then strict mode is put to its self-test. parts: what the forward
    in fixed shapes is made of; None: what works here, and if nothing does, the simple forward. cuda_graphs: capture
    that forward; on CUDA only. products: on a CPU, a name in `products.KINDS`, or "auto" for what is chosen by
    measuring: the model's linear layers are packed for them, and it is of no other use from here on. None: it is left
    as it is. remember: on a CPU, in strict mode, what the trials find, in the user's cache for the next start.
    """
    _refuse_unsupported(model)
    limit = _context_limit(model.config, context_limit)
    info = EngineInfo(
        name=name,
        fingerprint="",
        vocabulary_size=model.config.get_text_config().vocab_size,
        eos_ids=_eos_ids(model),
        context_limit=limit,
        max_sequences=max_sequences,
        strict=False,
        strict_report="Strict mode is off by its setting.",
    )
    model.eval()
    shapes = _layer_shapes(model)
    try:
        parts = parts or find_parts(model, shapes, strict=strict)
        if parts is not None and parts.decoder is not None:
            parts.decoder.merge(model)
        pages = pages_within(model, shapes, limit, max_sequences, kv_cache_gib, gpu_memory_share)
        pool = PagePool(shapes, pages, model.dtype, model.device)
    except MemoryTooSmall as error:
        raise ModelError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"There is too little memory on {model.device} for the pages of keys and values; lower "
            "--gpu-memory-share or --kv-cache-gib, or stop what else uses it."
        ) from error
    weights = weights_digest(model)  # before they are packed
    on_cpu = model.device.type == "cpu" and parts is None
    remembered = None
    if remember and strict and on_cpu:
        remembered = Remembered(_facts(model, weights, [limit, max_sequences, pages, products]))
        if (found := remembered.get()) is not None:
            engine = _as_found(model, info, pool, found)
            if engine is not None:
                engine.describe(fingerprint=fingerprint(engine, weights, [found["way"], found["kind"]]))
                return engine
    trial = _trial_ids(info.vocabulary_size, limit)
    own = _own_forward(model, trial)
    if on_cpu:
        engine, computed = _on_cpu(model, info, pool, trial, own, strict=strict, products=products)
    else:
        engine, computed = _on_gpu(model, info, pool, trial, own, parts, strict=strict, cuda_graphs=cuda_graphs)
    if engine.fast is None:
        engine.describe(trees=True)
        engine.describe(trees=branches_agree(engine))
    engine.forget()  # what was tried is nobody's beginning
    engine.describe(fingerprint=fingerprint(engine, weights, computed))
    if remembered is not None and engine.info.strict:
        remembered.put(_outcome(engine, *computed))
    return engine


def _facts(model: PreTrainedModel, weights: bytes, settings: Sequence[object]) -> list[object]:
    """What decides the outcome of an engine's trials on a CPU."""
    config = _lasting(model.config.to_dict())
    return [
        "torch",
        weights.hex(),
        config,
        str(model.dtype),
        transformers.__version__,
        torch.__config__.show(),
        settings,
    ]


def _outcome(engine: TorchEngine, way: str, kind: str) -> dict[str, object]:
    """What `_as_found` needs to make a tested engine again."""
    return {
        "way": way,
        "kind": kind,
        "rows": [engine.rows.multiple, engine.rows.most],
        "tile_rows": engine.tile_rows,
        "strict_report": engine.info.strict_report,
        "trees": engine.info.trees,
        "check": quick_check(engine),
    }


def _as_found(model: PreTrainedModel, info: EngineInfo, pool: PagePool, found: Mapping[str, Any]) -> TorchEngine | None:
    """The engine that was tested before; None if it does not compute what it did then."""
    packing, own_attention = None, model.config._attn_implementation
    try:
        way, choice = found["way"], Choice(found["kind"], RowRule(*found["rows"]))
        packing, decoder = _packed(model, pool, way, choice.kind, strict=True)
        engine = TorchEngine(model, info, pool, strict=True, decoder=decoder)
        engine.use(choice.rule)
        engine.tile_rows = int(found["tile_rows"])
        engine.describe(strict=True, strict_report=str(found["strict_report"]), trees=bool(found["trees"]))
        if found["check"] and quick_check(engine) == found["check"]:
            _log.info(
                "As tried before on this machine: layers %s, products %s, rows %s.", way, choice.kind, engine.rows
            )
            return engine
        _log.info("The self-test that was passed before does not hold any more; it is made anew.")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        _log.info("What a self-test has found before cannot be used (%s); it is made anew.", error)
    if packing is not None:
        packing.undo()
    model.set_attn_implementation(own_attention)
    return None


def _packed(
    model: PreTrainedModel, pool: PagePool, way: str, kind: str, *, strict: bool
) -> tuple[Packing | None, CpuDecoder | None]:
    """The model's layers in one of `WAYS`, in place."""
    if way == "transformers":
        return None, None
    packing = Packing(model, kind, joined(model) if way == "fused" else ())
    return packing, CpuDecoder(model, packing, pool, strict=strict) if way == "fused" else None


def _on_gpu(
    model: PreTrainedModel,
    info: EngineInfo,
    pool: PagePool,
    trial: list[list[int]],
    own: list[torch.Tensor],
    parts: Parts | None,
    *,
    strict: bool,
    cuda_graphs: bool,
) -> tuple[TorchEngine, list[str]]:
    """The fastest engine that passes, and what it computes with, for the fingerprint. Raises ModelError."""
    for candidate in _with_fallbacks(parts):
        engine = TorchEngine(model, info, pool, strict=strict, parts=candidate, cuda_graphs=cuda_graphs)
        refused = _refused(engine, trial, own, strict_row_rules(model.device))
        if refused is None:
            break
        if candidate is None:
            raise refused
        _log.warning("Steps do not run with %s: %s", candidate.name, refused)
        if engine.fast is not None:
            engine.fast.forget()  # what it captured holds memory of the device
    return engine, [] if engine.fast is None else [engine.fast.parts.name, str(engine.fast.split_pages)]


def _on_cpu(
    model: PreTrainedModel,
    info: EngineInfo,
    pool: PagePool,
    trial: list[list[int]],
    own: list[torch.Tensor],
    *,
    strict: bool,
    products: str | None,
) -> tuple[TorchEngine, list[str]]:
    """As `_on_gpu`: layers in few calls on packed weights, transformers' layers on these, or everything as it was."""
    reason = why_not(model)
    groups = [] if reason else joined(model)
    choice = None
    if products is not None:
        choice = choose(model, groups, strict=strict) if products == "auto" else Choice(products, CPU_RULES[0])
    for way in WAYS[2 if choice is None else 1 if reason else 0 :]:
        packing, decoder = _packed(model, pool, way, choice.kind if choice is not None else "", strict=strict)
        engine = TorchEngine(model, info, pool, strict=strict, decoder=decoder)
        rules = strict_row_rules(model.device)
        if choice is not None and packing is not None and not packing.leaves_products(model):
            rules = (choice.rule, *(rule for rule in rules if rule.multiple > choice.rule.multiple))
        refused = _refused(engine, trial, own, rules)
        if refused is None and (engine.info.strict == strict or packing is None):
            break
        if packing is None:
            assert refused is not None
            raise refused
        _log.warning("Steps do not run with %s layers: %s", way, refused or engine.info.strict_report)
        packing.undo()
    kind = "plain" if choice is None or way == "transformers" else choice.kind
    _log.info("Layers are %s, products %s, rows %s.%s", way, kind, engine.rows, f" ({reason})" if reason else "")
    return engine, [way, kind]


def _with_fallbacks(parts: Parts | None) -> list[Parts | None]:
    """What to try, the fastest first; None is the simple forward."""
    if parts is None:
        return [None]
    return [parts, None] if parts.decoder is None else [parts, replace(parts, decoder=None), None]


def _refused(
    engine: TorchEngine, trial: list[list[int]], own: list[torch.Tensor], rules: Sequence[RowRule]
) -> ModelError | None:
    """Why an engine cannot be served as it is. One that is strict by its setting has its row rule settled."""
    try:
        _compare(engine, trial, own)
    except ModelError as error:
        return error
    if not engine.strict:
        return None
    if engine.model.device.type == "cpu" and engine.fast is None:
        engine.tile_rows = _least_tile_rows(engine)
    _settle_rows(engine, rules)
    if not engine.info.strict and engine.tile_rows < TILE_ROWS:
        engine.tile_rows = TILE_ROWS
        _settle_rows(engine, rules)
    if engine.info.strict or engine.fast is None:
        return None
    return ModelError(engine.info.strict_report)


def _least_tile_rows(engine: TorchEngine) -> int:
    heads = getattr(engine.model.config.get_text_config(), "num_attention_heads", None)
    if not isinstance(heads, int):  # one for each layer, say
        return TILE_ROWS
    return least_tile_rows(engine.layer_shapes, heads, engine.model.dtype)


def _settle_rows(engine: TorchEngine, rules: Sequence[RowRule]) -> None:
    """Find the cheapest row rule under which the self-test passes; where none does, the engine is not strict."""
    device = engine.model.device
    for rule in rules:
        engine.use(rule)
        try:
            report = self_test(engine, rule.sizes if device.type == "cuda" else ())
        except RuntimeError as error:  # cuBLAS has no product in one piece for some shape
            if device.type != "cuda":
                raise
            _log.debug("with %s: %s", rule, _first_line(error))
            engine.describe(strict=False, strict_report=f"Strict mode does not run here: {_first_line(error)}.")
            continue
        engine.describe(strict=report.strict, strict_report=report.sentence)
        _log.debug("with %s: %s", rule, report.sentence)
        if report.strict:
            return


def weights_digest(model: PreTrainedModel) -> bytes:
    """sha256 over a model's parameters and buffers, by name."""
    tensors = sorted([*model.named_parameters(), *model.named_buffers()], key=lambda item: item[0])

    def digest(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        head = f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
        return hashlib.sha256(head + hashlib.sha256(data).digest()).digest()

    whole = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets go of the interpreter lock
        for part in pool.map(digest, tensors):
            whole.update(part)
    return whole.digest()


def fingerprint(engine: TorchEngine, weights: bytes, computed: Sequence[str]) -> str:
    """sha256, in hex, over the weights, the configuration, the precision, strictness, kind of device and versions.

    weights: of `weights_digest`. computed: what the layers are computed with. Replicas that agree in it compute the
    same words. On a CPU that includes the number of threads: MKL splits a narrow matrix among three threads in another
    way than between two.
    """
    device = engine.model.device
    if device.type == "cuda":
        kind = [torch.cuda.get_device_name(device)]
    else:
        kind = [torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())]
    settings = {
        "config": _lasting(engine.model.config.to_dict()),
        "dtype": str(engine.model.dtype),
        "strict": [engine.info.strict, *astuple(engine.rows), engine.tile_rows],
        "device": [device.type, *kind, *computed],
        "versions": [torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(weights + json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what says where a model came from rather than what it computes."""
    passing = ("transformers_version", "name_or_path", "dtype", "torch_dtype", "architectures")
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in passing}


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ModelError(f'device "{device}" is not known; use "auto", "cpu", "cuda" or "cuda:0".') from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError('device is "cuda", but torch sees no CUDA device here; use "cpu" or "auto".')
    return place


def _open(model: str, dtype: torch.dtype, context_limit: int | None) -> PreTrainedModel:
    try:
        check_path(model)
    except ModelSourceError as error:
        raise ModelError(str(error)) from error
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"The configuration of {model} cannot be read: {_first_line(error)}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(f'{model} is a "{config.model_type}" model, which is not a causal language model.')
    _context_limit(config, context_limit)  # before gigabytes are read
    try:
        opened: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f"The weights of {model} cannot be read: {_first_line(error)}") from error
    return opened


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _context_limit(config: PretrainedConfig, asked: int | None) -> int:
    config = config.get_text_config()
    if asked is not None and asked < SHORTEST_CONTEXT:
        raise ModelError(f"--max-model-len is {asked}; it must be at least {SHORTEST_CONTEXT} tokens.")
    own = getattr(config, "max_position_embeddings", None)
    if asked is not None and own is not None and asked > own:
        raise ModelError(
            f"--max-model-len is {asked}, and the model takes at most {own} tokens (max_position_embeddings in its "
            "config.json); give no more than that, or leave it out."
        )
    limits = [limit for limit in (own, asked) if limit is not None]
    if not limits:
        raise ModelError("The model does not say how long a sequence it takes; give --max-model-len.")
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    sliding = "sliding_attention" in layer_types if layer_types else getattr(config, "use_sliding_window", True)
    if sliding and window is not None and window < min(limits):
        raise ModelError(
            f'This "{config.model_type}" model attends over a sliding window of {window} tokens, which is not '
            f"supported yet; give --max-model-len {window} or less."
        )
    return int(min(limits))


def _refuse_unsupported(model: PreTrainedModel) -> None:
    """Refuse by configuration what a packed forward over a pool of full-length keys would get wrong."""
    config = model.config.get_text_config()
    kind = f'This "{config.model_type}" model'
    if not model.is_backend_compatible():
        raise ModelError(f"{kind} does not use transformers' attention interface, which the engine needs.")
    layer_types = set(getattr(config, "layer_types", None) or ())
    if others := sorted(layer_types - {"full_attention", "sliding_attention"}):
        raise ModelError(f"{kind} has layers of type {', '.join(others)}; only attention layers are supported yet.")
    for name in _rope_types(getattr(config, "rope_parameters", None)):
        if name in ("dynamic", "longrope"):
            raise ModelError(
                f'{kind} scales its rotary positions by the longest sequence of a batch ("{name}"), so its words would '
                "depend on their company; it is not supported."
            )


def _rope_types(parameters: object) -> set[str]:
    """All rope types in a configuration's rope parameters, which are nested by layer type in some models."""
    if not isinstance(parameters, dict):
        return set()
    found = {parameters["rope_type"]} if isinstance(parameters.get("rope_type"), str) else set()
    return found.union(*(_rope_types(value) for value in parameters.values()))


def _eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """What generation_config.json and config.json name; one of them is often out of date."""
    configs = (model.generation_config, model.config.get_text_config())
    named = [getattr(config, "eos_token_id", None) for config in configs]
    flat = (token for one in named for token in (one if isinstance(one, list | tuple) else [one]))
    return tuple(sorted({int(token) for token in flat if token is not None}))


def _trial_ids(vocabulary_size: int, limit: int) -> list[list[int]]:
    """Two sequences of unequal length to try a model with."""
    long = min(TRIAL_TOKENS, limit)
    return [[(37 + 101 * i) % vocabulary_size for i in range(n)] for n in (long, long // 2)]


@torch.inference_mode()
def _own_logits(model: PreTrainedModel, trial: list[list[int]]) -> list[torch.Tensor]:
    return [model(input_ids=torch.tensor([ids]).to(model.device), use_cache=False).logits[0] for ids in trial]


def _own_forward(model: PreTrainedModel, trial: list[list[int]]) -> list[torch.Tensor]:
    """A model's own logits of the trial. Raises ModelError."""
    try:
        return _own_logits(model, trial)
    except Exception as error:  # what a model raises that is made for something else
        raise _not_evaluated(model, error) from error


def _layer_shapes(model: PreTrainedModel) -> list[LayerShape]:
    """What a model's layers cache. Raises ModelError if it has no such forward."""
    try:
        shapes = layer_shapes(model)
    except Exception as error:  # what a model raises that is made for something else
        raise _not_evaluated(model, error) from error
    if not shapes:
        raise ModelError(
            f'This "{model.config.model_type}" model keeps no keys and values of the tokens that it has read, so it is '
            "no causal language model (or is not configured as one); serve a decoder, such as a Llama or a Qwen."
        )
    return shapes


def _not_evaluated(model: PreTrainedModel, error: Exception) -> ModelError:
    if isinstance(error, torch.OutOfMemoryError):
        return ModelError(f"There is too little memory on {model.device} to try the model; stop what else uses it.")
    return ModelError(
        f'This "{model.config.model_type}" model cannot be evaluated as a causal language model: {_first_line(error)}.'
    )


def _compare(engine: TorchEngine, trial: list[list[int]], own: list[torch.Tensor]) -> None:
    """Refuse a model whose packed forward differs from its own: it uses something the engine does not pass on."""
    kind = f'This "{engine.model.config.model_type}" model'
    sampler = Sampler(SamplingParams(), seed=0, prompt_length=0)
    for ids, expected in zip(trial, own, strict=True):
        sequence, other = engine.open(), None
        try:
            halves = [ids[: len(ids) // 2], ids[len(ids) // 2 :]]
            blocks = [Block(sequence, halves[0], len(halves[0]), sampler)]
            if engine.info.max_sequences > 1:
                other = engine.open()
                blocks.insert(0, Block(other, ids[::-1], 0, sampler))
            first = engine.logits(blocks)[-1]
            got = torch.cat([first, *engine.logits([Block(sequence, halves[1], len(halves[1]), sampler)])]).float()
        except Exception as error:
            raise ModelError(f"{kind} cannot be evaluated in packed form: {_first_line(error)}.") from error
        finally:
            engine.close(sequence)
            if other is not None:
                engine.close(other)
        spread = (expected.float() - expected.float().mean()).square().mean().sqrt()
        share = float((got - expected.float()).square().mean().sqrt() / spread)
        if not share <= TOLERANCE[engine.model.dtype]:
            raise ModelError(
                f"{kind} computes {share:.3g} of its logits' spread differently in packed form; it uses something that "
                "this engine does not support."
            )
