"""A GGUF file in memory: its weights, what it says about itself, and its text."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cloud_verifier.engines.base import ModelError
from outrider_models.errors import ModelFileError
from outrider_models.gguf_header import GgufHeader, read_header, weight_files
from outrider_models.llama_cpp.api import LOG, check_types, load_api
from outrider_models.llama_cpp.text import read_text
from outrider_models.llama_cpp.vocabulary import read_vocabulary
from outrider_models.model_text import ModelText

ALL_LAYERS = -1


@dataclass(frozen=True)
class Loading:
    """How llama.cpp is to hold the weights.

    gpu_layers: on a GPU, ALL_LAYERS for all. repacked: on a CPU, laid out anew for its kernels, where it can.
    """

    gpu_layers: int = 0
    repacked: bool = True


class GgufModel:
    """A model that llama.cpp has loaded; freed with the last reference."""

    def __init__(self, path: Path, loading: Loading) -> None:
        """path: of a model in pieces, the first. Raises ModelError."""
        try:
            self.header: GgufHeader = read_header(path)
            self.api: Any = load_api(verbose=False)
            check_types(self.api, self.header, path)
        except ModelFileError as error:
            raise ModelError(f"{error}.") from error
        self.path, self.loading, self.name = path, loading, path.stem
        params = self.api.llama_model_default_params()
        params.n_gpu_layers = loading.gpu_layers
        params.use_extra_bufts = loading.repacked
        self.handle: Any = self.api.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise ModelError(f"llama.cpp cannot load {path}: {LOG.last_error()}.")
        weakref.finalize(self, self.api.llama_model_free, self.handle)
        self._refuse_unsupported()

    @property
    def files(self) -> list[Path]:
        """All files of it."""
        return weight_files(self.path)

    @cached_property
    def vocabulary_size(self) -> int:
        """Rows of logits, which may be more than there are tokens."""
        return int(self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.handle)))

    @property
    def context_limit(self) -> int:
        """Longest sequence that it was made for, in tokens."""
        return int(self.api.llama_model_n_ctx_train(self.handle))

    @property
    def window(self) -> int:
        """Positions that its layers with a sliding window attend to; 0 if there are none."""
        return int(self.api.llama_model_n_swa(self.handle))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: end of sequence, of turn and of message, as far as the file tells."""
        own, is_end = self.api.llama_model_get_vocab(self.handle), self.api.llama_vocab_is_eog
        return tuple(token for token in range(self.vocabulary_size) if is_end(own, token))

    @cached_property
    def text(self) -> ModelText:
        """Its tokenizer and chat template. It keeps the model in memory."""
        own = self.api.llama_model_get_vocab(self.handle)
        vocabulary = read_vocabulary(self.api, own, self.vocabulary_size)
        return read_text(self.api, self.handle, vocabulary, self.name)

    def _refuse_unsupported(self) -> None:
        kind = f'The "{self.header.architecture}" model in {self.path}'
        refusals: list[tuple[Callable[[Any], bool], str]] = [
            (self.api.llama_model_has_encoder, "has an encoder; only causal language models are served"),
            (lambda model: not self.api.llama_model_has_decoder(model), "has no decoder and writes no text"),
            (self.api.llama_model_is_diffusion, "does not write token by token"),
            (
                lambda model: self.api.llama_model_is_recurrent(model) or self.api.llama_model_is_hybrid(model),
                "keeps a state from which no token can be taken back, as every wrong guess must be; serve a model with "
                "plain attention",
            ),
        ]
        for refused, why in refusals:
            if refused(self.handle):
                raise ModelError(f"{kind} {why}.")
