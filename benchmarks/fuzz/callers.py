"""Who calls, where a verifier knows keys: principals with small quotas, one that is disabled, and strangers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cloud_verifier.security.authentication import Authentication
from cloud_verifier.security.keys import KeyFile, KeyStore
from cloud_verifier.security.principals import Quota

BYSTANDER = "bystander"
QUOTAS = {
    "ann": Quota(),
    "bob": Quota(max_sessions=2, max_queued=0),
    "carol": Quota(max_prompt_tokens=8),
    "dave": Quota(tokens_per_minute=40),
    BYSTANDER: Quota(),
}
DISABLED = "eve"
STRANGERS: dict[str, tuple[tuple[str, str], ...]] = {
    "no key": (),
    "a wrong key": (("authorization", "Bearer outr_0123456789"),),
    "no bearer": (("authorization", "Basic dXNlcjpwYXNz"),),
    "two keys": (("authorization", "Bearer a"), ("authorization", "Bearer b")),
}
REVOCABLE = tuple(name for name in QUOTAS if name != BYSTANDER)
NAMES = (*REVOCABLE, DISABLED, *STRANGERS)


@dataclass(frozen=True)
class Caller:
    """What a call shows, and whose it is; of one that must not be let in, nobody's."""

    metadata: tuple[tuple[str, str], ...] = ()
    principal: str = ""
    quota: Quota = field(default_factory=Quota)


class Callers:
    """The file of keys, and all who call."""

    def __init__(self, folder: Path) -> None:
        """folder: an empty one, for the file."""
        self._file = KeyFile(folder / "keys.toml")
        self._keys = {name: self._add(name) for name in (*QUOTAS, DISABLED)}
        text = self._file.path.read_text()
        table = f"[principals.{DISABLED}]\n"
        assert table in text
        self._file.path.write_text(text.replace(table, table + "disabled = true\n"))
        self.authentication = Authentication(KeyStore(self._file.path))

    def named(self, name: str) -> Caller:
        """One of `NAMES`, with the key it has now."""
        if name in STRANGERS:
            return Caller(STRANGERS[name])
        metadata = (("authorization", f"Bearer {self._keys[name]}"),)
        return Caller(metadata, name, QUOTAS[name]) if name in QUOTAS else Caller(metadata)

    def revoke(self, name: str) -> None:
        """Take a principal's key away, and give it another."""
        self._file.remove(name)
        self._keys[name] = self._add(name)

    def _add(self, name: str) -> str:
        quota = QUOTAS.get(name, Quota())
        return self._file.add(name, {key: value for key, value in vars(quota).items() if value is not None})
