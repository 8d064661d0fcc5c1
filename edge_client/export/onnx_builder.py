"""A transformers folder as a folder for ONNX Runtime: one model.onnx, and the tokenizer.

The graph comes from the model builder of onnxruntime-genai, with GroupQueryAttention, or from torch for the families
that the builder does not know. It gives logits for the last token of a call only, which is all that a drafter reads.
The builder can quantize too, but keeps an 8-bit model's input embedding in float32 although
the same matrix, in 8 bits, is the output head: for a small model that is most of the file. So the weights are quantized
here, and the embedding reads those of the head.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime_genai.models.builder import create_model, parse_extra_options
from transformers import AutoConfig

from edge_client.export.onnx_traced import export_traced

BITS = {"int8": 8, "int4": 4}
BLOCK_SIZE = 32
ACTIVATIONS_INT8 = 4  # MatMulNBits' accuracy_level
SINGLE_FILE_BYTES = 1 << 30  # protobuf ends at 2 GiB; larger weights stay in model.onnx.data
KEPT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "genai_config.json", "config.json")
TRACED = ("gpt2",)  # families that the builder does not know


def export_onnx(model_folder: Path, output: Path, quantize: str = "int8") -> None:
    """Write the folder `output` from the transformers folder `model_folder`. quantize: fp32, int8 or int4.

    int8 and int4 are weights in blocks of 32 with activations in 8 bits. Embedding and head are 8 bits in both, because
    they decide a small model's words. Replaces a model that is already in `output`. Raises ValueError for an unknown
    quantization or a model that the builder does not know; what else it or torch raise goes on.
    """
    if quantize not in ("fp32", *BITS):
        raise ValueError(f"unknown quantization {quantize!r} for ONNX; known are fp32, {', '.join(BITS)}")
    config = AutoConfig.from_pretrained(model_folder)
    tied = config.tie_word_embeddings
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        built = Path(scratch) / "built"
        if config.model_type in TRACED:
            export_traced(model_folder, built)
        else:
            _build(model_folder, built, Path(scratch) / "cache", tied and quantize == "fp32")
        model = onnx.load(built / "model.onnx")
        if quantize in BITS:
            _quantize(model, BITS[quantize])
            if tied:
                _tie_embedding(model)
        for old in output.glob("model.onnx*"):
            old.unlink()
        large = model.ByteSize() > SINGLE_FILE_BYTES
        onnx.save(model, output / "model.onnx", save_as_external_data=large, location="model.onnx.data")
        for name in KEPT:
            if (built / name).is_file():
                shutil.copyfile(built / name, output / name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The builder and the quantizer print a line per node."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _build(model_folder: Path, built: Path, cache: Path, tied: bool) -> None:
    place = ("", str(model_folder), str(built), "fp32", "cpu", str(cache))
    options = ["prune_lm_head=true", f"shared_embeddings={str(tied).lower()}"]
    try:
        create_model(*place, **parse_extra_options(*place, options))
    except (AttributeError, KeyError, NotImplementedError, TypeError) as error:  # how it meets what it does not know
        raise ValueError(
            f"onnxruntime-genai's model builder cannot build {model_folder} ({type(error).__name__}: {error}); "
            "it may know the model in another version, or with another one of transformers"
        ) from error


def _quantize(model: onnx.ModelProto, body_bits: int) -> None:
    """MatMul to MatMulNBits in place: the head in 8 bits, everything else in `body_bits`."""
    _gemm_to_matmul(model.graph)
    matmuls = [node for node in model.graph.node if node.op_type == "MatMul"]
    heads = [node.name for node in matmuls if node.output[0] == "logits"]
    bodies = [node.name for node in matmuls if node.name not in heads]
    for bits, excluded in ((8, bodies), (body_bits, heads)):
        quantizer = MatMulNBitsQuantizer(
            model,
            bits=bits,
            block_size=BLOCK_SIZE,
            is_symmetric=True,
            accuracy_level=ACTIVATIONS_INT8,
            nodes_to_exclude=excluded,
            op_types_to_quantize=("MatMul",),
        )
        quantizer.process()
        model.CopyFrom(quantizer.model.model)


def _gemm_to_matmul(graph: onnx.GraphProto) -> None:
    """A Gemm with constant weights is a MatMul and an Add; the quantizer knows MatMul only. In place."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for at, node in reversed(list(enumerate(graph.node))):
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
        if node.op_type != "Gemm" or not plain or node.input[1] not in constants:
            continue
        weight = node.input[1]
        if settings.get("transB", 0):
            turned = numpy_helper.to_array(constants[weight]).T
            weight = f"{weight}.turned"
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(turned), weight))
        product = f"{node.output[0]}.product" if len(node.input) > 2 else node.output[0]
        name = node.name or f"gemm{at}"
        nodes = [helper.make_node("MatMul", [node.input[0], weight], [product], f"{name}/MatMul")]
        if len(node.input) > 2:
            nodes.append(helper.make_node("Add", [product, node.input[2]], list(node.output), f"{name}/Add"))
        del graph.node[at]
        for new in reversed(nodes):
            graph.node.insert(at, new)


def _tie_embedding(model: onnx.ModelProto) -> None:
    """Let the token embedding read the 8-bit weights of the output head; changes `model` in place.

    The head is a MatMulNBits with weights of shape [V, blocks, block_size] and one scale per block, [V, blocks];
    GatherBlockQuantized reads the same bytes and scales, once the last two axes of the weights are one.
    """
    graph = model.graph
    gathers = [node for node in graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"]
    heads = [node for node in graph.node if node.op_type == "MatMulNBits" and node.output[0] == "logits"]
    if len(gathers) != 1 or len(heads) != 1:
        return  # not the builder's graph
    (gather,), (head,) = gathers, heads
    settings = {attribute.name: attribute.i for attribute in head.attribute}
    if settings["K"] % settings["block_size"]:
        return  # the head's rows are padded to whole blocks, which the lookup would return
    float_table, packed, scales = gather.input[0], head.input[1], head.input[2]
    shape = numpy_helper.from_array(np.array([settings["N"], settings["K"]]), f"{float_table}.shape")
    joined = helper.make_node("Reshape", [packed, shape.name], [f"{float_table}.Q8"], f"{gather.name}/Reshape")
    lookup = helper.make_node(
        "GatherBlockQuantized",
        [joined.output[0], "input_ids", scales],
        list(gather.output),
        f"{gather.name}BlockQuantized",
        domain="com.microsoft",
        bits=8,
        block_size=settings["block_size"],
        gather_axis=0,
        quantize_axis=1,
    )
    at = list(graph.node).index(gather)
    graph.node.remove(gather)
    graph.node.insert(at, lookup)
    graph.node.insert(at, joined)
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == float_table))
    graph.initializer.append(shape)
