"""The peers: how each is made to write token ids, as its own documentation recommends for a CPU.

Every peer is a function from its arguments to a `Write`: prompt ids and a number of tokens in, ids out, one by one as
they come. They are greedy. Nothing here knows a network.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

Write = Callable[[Sequence[int], int], Iterator[int]]
PREDICTED_TOKENS_HF = 10  # transformers' guide on assisted generation, prompt lookup
PREDICTED_TOKENS_LLAMA = 2  # llama-cpp-python's README: "2 performs better for cpu-only machines"


@dataclass(frozen=True)
class Models:
    """folder: the target for transformers. gguf: for llama.cpp. assistant: a transformers folder with the same
    vocabulary; None: there is none. threads: of everybody."""

    folder: Path
    gguf: Path | None
    assistant: Path | None
    threads: int


@dataclass(frozen=True)
class Peer:
    """missing: says why it cannot run with these models; None if it can. load: see `Write`."""

    missing: Callable[[Models], str | None]
    load: Callable[[Models], Write]


def _transformers(models: Models, **options: Any) -> Write:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    torch.set_num_threads(models.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(models.folder, dtype=torch.float32).eval()
    if (folder := options.get("assistant_model")) is not None:
        options["assistant_model"] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    class Queued(BaseStreamer):
        """Hands over ids as `generate` writes them; the prompt comes first and is dropped."""

        def __init__(self, queue: SimpleQueue[list[int] | None]) -> None:
            self._queue, self._prompt = queue, True

        def put(self, value: Any) -> None:
            if not self._prompt:
                self._queue.put(value.flatten().tolist())
            self._prompt = False

        def end(self) -> None:
            self._queue.put(None)

    def write(prompt: Sequence[int], count: int) -> Iterator[int]:
        queue: SimpleQueue[list[int] | None] = SimpleQueue()
        ids = torch.tensor([list(prompt)])

        def run() -> None:
            try:
                model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
                    streamer=Queued(queue), **options,
                )  # fmt: skip
            finally:
                queue.put(None)

        thread = Thread(target=run)
        thread.start()
        while (some := queue.get()) is not None:
            yield from some
        thread.join()

    return write


def _llama_cpp(models: Models, *, lookup: bool) -> Write:
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    draft = LlamaPromptLookupDecoding(num_pred_tokens=PREDICTED_TOKENS_LLAMA) if lookup else None
    model = Llama(
        str(models.gguf), n_ctx=2048, n_threads=models.threads, n_threads_batch=models.threads, verbose=False,
        draft_model=draft, logits_all=lookup,
    )  # fmt: skip

    def write(prompt: Sequence[int], count: int) -> Iterator[int]:
        end = model.token_eos()
        for written, token in enumerate(model.generate(list(prompt), temp=0.0, repeat_penalty=1.0, reset=True), 1):
            yield int(token)
            if token == end or written == count:
                return

    return write


def _have(models: Models, *, package: str, file: str | None = None) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if file is not None and getattr(models, file) is None:
        return f"no --{file} was given"
    return None


PEERS: dict[str, Peer] = {
    "transformers": Peer(lambda m: _have(m, package="transformers"), _transformers),
    "transformers, prompt lookup": Peer(
        lambda m: _have(m, package="transformers"),
        lambda m: _transformers(m, prompt_lookup_num_tokens=PREDICTED_TOKENS_HF),
    ),
    "transformers, assistant": Peer(
        lambda m: _have(m, package="transformers", file="assistant"),
        lambda m: _transformers(m, assistant_model=m.assistant),
    ),
    "llama.cpp": Peer(
        lambda m: _have(m, package="llama_cpp", file="gguf"), lambda m: _llama_cpp(m, lookup=False)
    ),
    "llama.cpp, prompt lookup": Peer(
        lambda m: _have(m, package="llama_cpp", file="gguf"), lambda m: _llama_cpp(m, lookup=True)
    ),
}  # fmt: skip
# Named by our users, and not run from here: said in the report, so that nobody takes silence for a result.
NOT_RUN = {
    "llama-server -md": "llama.cpp's server is in no wheel; llama-cpp-python has prompt lookup, and no draft model",
    "vLLM": "wants an environment of its own (docs/vllm.md); python -m benchmarks.vllm_step stands it beside ours",
    "SpecEdge": "not on a package index, written for CUDA, and its licence forbids commercial use; not tried here",
    "AutoDraft": "autodraft-sd is written for CUDA and bitsandbytes; not tried on a CPU",
}
