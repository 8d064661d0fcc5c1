"""The text of an ONNX model: tokenizer.json and the configurations beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_client.drafters.base import DrafterError
from edge_client.drafters.onnx.graph import TOKENIZER_FILE, beside, read_json, read_vocabulary
from outrider_models.model_text import ModelText, template_of

_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TEMPLATE_FILE = "chat_template.jinja"


def read_text(file: Path, name: str) -> ModelText:
    """file: the .onnx file. Raises DrafterError."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DrafterError("answering without the verifier needs tokenizers: pip install tokenizers") from error
    home = beside(file, TOKENIZER_FILE)
    vocabulary = read_vocabulary(file)
    try:
        tokenizer = Tokenizer.from_file(str(home))
    except Exception as error:  # tokenizers raises bare Exception
        raise DrafterError(f"{home} cannot be used: {error}") from error
    # Some files keep the settings of whoever trained with them: a prompt would be cut, or filled up.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def tokenize(text: str, opening: bool) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=opening).ids)

    config = _read(file, "special_tokens_map.json") | _read(file, "tokenizer_config.json")
    specials = {key: text for key in _SPECIALS if (text := _text(config, key))}
    return ModelText(name, vocabulary, tokenize, _template(file, config), specials, _end_ids(file, tokenizer, specials))


def _read(file: Path, name: str) -> dict[str, Any]:
    found = beside(file, name)
    return read_json(found) if found is not None else {}


def _text(config: dict[str, Any], key: str) -> str:
    """Of a special token, written as a text or as an object with it."""
    value = config.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _template(file: Path, config: dict[str, Any]) -> str:
    found = beside(file, _TEMPLATE_FILE)
    if found is None:
        return template_of(config)
    try:
        return found.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DrafterError(f"{found} cannot be read: {error}") from error


def _end_ids(file: Path, tokenizer: Any, specials: dict[str, str]) -> frozenset[int]:
    genai = _read(file, "genai_config.json").get("model")
    told = [genai.get("eos_token_id") if isinstance(genai, dict) else None]
    told += [_read(file, name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
    told.append(tokenizer.token_to_id(specials["eos_token"]) if "eos_token" in specials else None)
    flat = [one for entry in told for one in (entry if isinstance(entry, list) else [entry])]
    return frozenset(one for one in flat if isinstance(one, int))
