"""Networks by name: what people's links are like, one TOML file each, with a sentence on where its figures come from.

A file of your own works too: `description`, `source`, and under `[link]` the fields of `LinkSettings`; `rtt_trace` and
`rate_trace` there name CSV files (`netlab.traces`), relative to the TOML file.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from netlab import traces
from netlab.link_settings import LinkSettings

FOLDER = Path(__file__).resolve().parent
ALIASES = {"satellite": "satellite-geo"}
SUFFIX = ".toml"


class ProfileError(ValueError):
    """A profile that is not there or cannot be used. The message is a sentence without its full stop."""


@dataclass(frozen=True)
class Profile:
    """A network. source: where its figures come from."""

    name: str
    description: str
    source: str
    settings: LinkSettings


def names() -> tuple[str, ...]:
    """All that `find` knows, aliases included, the quickest network first and aliases last."""
    known = sorted((find(path.stem) for path in FOLDER.glob(f"*{SUFFIX}")), key=lambda p: (p.settings.rtt_ms, p.name))
    return (*(profile.name for profile in known), *ALIASES)


def find(name_or_path: str) -> Profile:
    """The profile of this name, or of the TOML file at this path. Raises ProfileError."""
    name = ALIASES.get(name_or_path, name_or_path)
    built_in = FOLDER / f"{name}{SUFFIX}"
    if Path(name).name == name and built_in.is_file():
        return _read(built_in)
    if name_or_path.endswith(SUFFIX):
        return _read(Path(name_or_path))
    raise ProfileError(
        f"there is no network profile {name_or_path!r}; there are {', '.join(names())}, or the path of a {SUFFIX} file"
    )


def _read(path: Path) -> Profile:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{path} is no TOML: {error}") from error
    try:
        return _profile(path, content)
    except (ValueError, TypeError) as error:
        raise ProfileError(f"{path}: {error}") from error


def _profile(path: Path, content: dict[str, Any]) -> Profile:
    texts = {key: content.pop(key, None) for key in ("description", "source")}
    link = content.pop("link", None)
    for key, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"expected {key}, a sentence")
    if not isinstance(link, dict) or content:
        raise ValueError(
            f"expected description, source and the table [link], found {', '.join(content) or 'no [link]'}"
        )
    known = {field.name: field.default for field in fields(LinkSettings)}
    for key, value in link.items():
        if key not in known:
            raise ValueError(f"[link] has no {key}; it has {', '.join(known)}")
        expected = str if key == "jitter_model" or key.endswith("_trace") else (int, float)
        if isinstance(value, bool) or not isinstance(value, expected):
            raise ValueError(f"{key} is {value!r}; expected {'a text' if expected is str else 'a number'}")
    if "rtt_trace" in link:
        link["rtt_trace"] = traces.read_rtts(path.parent / link["rtt_trace"])
    if "rate_trace" in link:
        link["rate_trace"] = traces.read_rates(path.parent / link["rate_trace"])
    return Profile(path.stem, texts["description"], texts["source"], LinkSettings(**link))
