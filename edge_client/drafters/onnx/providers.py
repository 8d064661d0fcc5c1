"""ONNX Runtime's execution providers: which one was asked for, which one there is, and what it really took.

::

    cpu | cuda | coreml:ModelFormat=MLProgram,MLComputeUnits=ALL | qnn:backend_path=libQnnHtp.so | auto

A provider takes the nodes it knows and leaves the rest to the CPU, and one that cannot start leaves everything to it,
so a name alone says nothing: `assignment` counts. Which providers there are depends on the installed build
(onnxruntime, onnxruntime-gpu, onnxruntime-qnn, onnxruntime-directml, onnxruntime-openvino).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_client.drafters.base import DrafterError
from edge_client.drafters.runtime_trial import Trial, check_runtime
from outrider_models.runtime_build import ONNX_RUNTIME

AUTO, CPU = "auto", "cpu"
CLASSES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
# What `auto` tries. TensorRT builds its engines for minutes: only by name.
MEASURED = ("cuda", "qnn", "coreml", "directml", "openvino", "xnnpack")
_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "coreml": {"ModelFormat": "MLProgram"},
    "tensorrt": {"trt_engine_cache_enable": "1"},
}


@dataclass(frozen=True)
class Provider:
    """name: a key of `CLASSES`. options: ONNX Runtime's own, as text."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        """As ONNX Runtime calls it."""
        return CLASSES[self.name]


def parse_provider(text: str) -> Provider:
    """``NAME[:key=value,...]``; ONNX Runtime's own class names are names too. Raises DrafterError on unknown ones."""
    name, _, rest = text.partition(":")
    by_class = {theirs.lower(): ours for ours, theirs in CLASSES.items()}
    name = by_class.get(name.lower(), name.lower())
    if name != AUTO and name not in CLASSES:
        raise DrafterError(f"there is no provider {name!r}; known are {AUTO}, {', '.join(CLASSES)}")
    options = dict(_DEFAULTS.get(name, {}))
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise DrafterError(f"the provider option {item!r} has no value; expected {name}:key=value,key=value")
        options[key.strip()] = value.strip()
    if name == AUTO and options:
        raise DrafterError("auto takes no provider options; name the provider they are for")
    return Provider(name, options)


def available_providers() -> list[str]:
    """Our names of the providers in the installed build; empty without ONNX Runtime.

    Raises DrafterError if importing it would end this process.
    """
    check_runtime(Trial(ONNX_RUNTIME))
    try:
        import onnxruntime
    except ImportError:
        return []
    built = onnxruntime.get_available_providers()
    return [ours for ours, theirs in CLASSES.items() if theirs in built]


@dataclass(frozen=True)
class Opened:
    """A session on a model. notices: for people, such as a provider that was missing. nodes: how many each took."""

    session: Any
    provider: str
    notices: tuple[str, ...]
    nodes: Mapping[str, int]

    @property
    def runs_on(self) -> str:
        """One line: what really runs where."""
        total = sum(self.nodes.values())
        parts = [f"{count} of {total} nodes on {name}" for name, count in self.nodes.items()]
        return "ONNX Runtime, " + (", ".join(parts) or ", ".join(self.session.get_providers()))


def open_session(file: Path, threads: int, provider: Provider) -> Opened:
    """Open a model on a provider, or on the CPU with a notice where that one is missing or cannot start.

    Raises DrafterError if ONNX Runtime is not installed or not even the CPU can load the model.
    """
    try:
        import onnxruntime  # here and not above: `edge-client --help` should not wait for it
    except ImportError as error:
        raise DrafterError("drafting with .onnx needs ONNX Runtime: pip install onnxruntime") from error
    built = onnxruntime.get_available_providers()
    notices = []
    if provider.class_name not in built:
        notices.append(
            f"the installed ONNX Runtime has no provider {provider.name} (it has {_names(built)}); "
            "the drafter runs on the CPU"
        )
        provider = Provider(CPU)
    try:
        session = _session(onnxruntime, file, threads, provider)
    except Exception as error:
        if provider.name == CPU:
            raise DrafterError(f"ONNX Runtime cannot load {file}: {error}") from error
        notices.append(f"the provider {provider.name} cannot load the model ({error}); the drafter runs on the CPU")
        return _opened(open_session(file, threads, Provider(CPU)).session, CPU, notices)
    if provider.class_name not in session.get_providers():
        notices.append(f"the provider {provider.name} could not start; the drafter runs on the CPU")
        provider = Provider(CPU)
    return _opened(session, provider.name, notices)


def _opened(session: Any, name: str, notices: list[str]) -> Opened:
    nodes = assignment(session)
    if name != CPU and nodes and not nodes.get(CLASSES[name]):
        notices.append(f"the provider {name} took no node of the model; all of it runs on the CPU")
    return Opened(session, name, tuple(notices), nodes)


def assignment(session: Any) -> dict[str, int]:
    """Nodes of the optimised graph by the provider that took them; empty if this ONNX Runtime does not tell."""
    try:
        subgraphs = session.get_provider_graph_assignment_info()
    except Exception:  # an older ONNX Runtime has no such method, or did not record
        return {}
    counts = Counter[str]()
    for subgraph in subgraphs:
        counts[subgraph.ep_name] += len(subgraph.get_nodes())
    return dict(counts.most_common())


def _session(onnxruntime: Any, file: Path, threads: int, provider: Provider) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning thread pool starves whatever shares the machine; drafting waits for commits most of the time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    own = dict(provider.options)
    if provider.name == "xnnpack":  # it has a thread pool of its own; ours would only stand in its way
        own.setdefault("intra_op_num_threads", str(threads))
        options.intra_op_num_threads = 1
    providers: list[Any] = [(provider.class_name, own)] if provider.name != CPU else []
    return onnxruntime.InferenceSession(str(file), options, providers=[*providers, CLASSES[CPU]])


def _names(classes: Sequence[str]) -> str:
    return ", ".join(ours for ours, theirs in CLASSES.items() if theirs in classes)
