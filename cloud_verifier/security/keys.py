"""The file of API keys: principals, the hashes of their keys, and their quotas.

A key is 256 random bits, made here and shown once. So one round of SHA-256 is enough to keep it: there is nothing to
guess that a slow hash would protect, and a slow one would let anybody keep the verifier busy with wrong keys.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from cloud_verifier.security.principals import Principal, Quota

log = logging.getLogger(__name__)

KEY_PREFIX = "outr_"  # so that scanners for leaked secrets can know a key by its looks
ID_DIGITS = 8
QUOTA_FIELDS = tuple(field.name for field in fields(Quota))
HEADER = "Principals of a verifier and the hashes of their keys; edit by hand or with `cloud-verifier keys`."


class KeyFileError(Exception):
    """A file that cannot be used. The message says where and why."""


@dataclass(frozen=True)
class Entry:
    """A principal of the file. hashes: SHA-256 of its keys in hex. certificate: a name in its client certificate."""

    principal: Principal
    hashes: tuple[str, ...] = ()
    certificate: str = ""
    disabled: bool = False


def hash_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def certificate_credential(name: str) -> str:
    """What a client certificate of this name is called among credentials; no hash of a key looks like it."""
    return f"certificate {name}"


def parse(text: str, default: Quota | None = None) -> list[Entry]:
    """The entries of a file. default: limits where an entry names none. Raises KeyFileError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise KeyFileError(f"is no TOML: {error}") from error
    if unknown := document.keys() - {"principals"}:
        raise KeyFileError(f"has {sorted(unknown)[0]!r}, but knows only tables named [principals.NAME]")
    tables = document.get("principals", {})
    if not isinstance(tables, dict):
        raise KeyFileError("has principals that are no tables; write [principals.NAME]")
    entries = [_entry(name, table, default or Quota()) for name, table in tables.items()]
    for what, values in (
        ("key", [digest for entry in entries for digest in entry.hashes]),
        ("certificate", [entry.certificate for entry in entries if entry.certificate]),
    ):
        if len(set(values)) < len(values):
            raise KeyFileError(f"gives one {what} to two principals; it must be clear whose it is")
    return entries


def _entry(name: str, table: Any, default: Quota) -> Entry:
    where = f"[principals.{name}]"
    if not isinstance(table, dict):
        raise KeyFileError(f"has {where} that is no table")
    known = {"sha256", "certificate", "disabled", *QUOTA_FIELDS}
    if unknown := table.keys() - known:
        raise KeyFileError(f"has {sorted(unknown)[0]!r} in {where}; known are {', '.join(sorted(known))}")
    hashes = table.get("sha256", [])
    if not isinstance(hashes, list) or not all(_is_hash(value) for value in hashes):
        raise KeyFileError(f"has a sha256 in {where} that is no list of hashes of 64 hex digits")
    certificate, disabled = table.get("certificate", ""), table.get("disabled", False)
    if not isinstance(certificate, str) or not isinstance(disabled, bool):
        raise KeyFileError(f"has in {where} a certificate that is no text, or a disabled that is not true or false")
    limits = {limit: table[limit] for limit in QUOTA_FIELDS if limit in table}
    for limit, value in limits.items():
        if type(value) is not int or value < 0:
            raise KeyFileError(f"has {limit} = {value!r} in {where}; a whole number from 0 on is expected")
    return Entry(Principal(name, replace(default, **limits)), tuple(hashes), certificate, disabled)


def _is_hash(value: Any) -> bool:
    return (
        isinstance(value, str)
        and len(value) == hashlib.sha256().digest_size * 2
        and set(value) <= set("0123456789abcdef")
    )


class KeyFile:
    """The file as it is edited."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self, default: Quota | None = None) -> list[Entry]:
        """What it says now. Raises KeyFileError."""
        try:
            return parse(self.path.read_text(), default)
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"cannot read the API keys: {error}") from error
        except KeyFileError as error:
            raise KeyFileError(f"{self.path} {error}") from error

    def add(self, name: str, limits: dict[str, int], certificate: str = "") -> str:
        """Make a key for a principal, new or known, and return it: the only time it can be seen.

        limits: fields of Quota. A certificate alone makes no key, and "" is returned. Raises KeyFileError.
        """
        if not name or not name.isprintable():
            raise KeyFileError(f"{name!r} cannot name a principal; use a printable name")
        key = "" if certificate else KEY_PREFIX + secrets.token_urlsafe(32)
        with self._edited() as document:
            table = document.setdefault("principals", tomlkit.table(is_super_table=True)).setdefault(
                name, tomlkit.table()
            )
            if key:
                table["sha256"] = [*table.get("sha256", []), hash_of(key)]
            else:
                table["certificate"] = certificate
            table.update(limits)
        return key

    def remove(self, name: str, key_id: str | None = None) -> None:
        """Take a principal out, or only its key of this id, the hash's first digits. Raises KeyFileError."""
        with self._edited() as document:
            principals = document.get("principals", {})
            if name not in principals:
                raise KeyFileError(f"{self.path} has no principal {name!r}; `keys list` shows who there is")
            if key_id is None:
                del principals[name]
                return
            hashes = principals[name].get("sha256", [])
            left = [digest for digest in hashes if digest[:ID_DIGITS] != key_id]
            if len(left) == len(hashes):
                raise KeyFileError(f"{name!r} has no key {key_id!r}; `keys list` shows which there are")
            principals[name]["sha256"] = left

    @contextlib.contextmanager
    def _edited(self) -> Iterator[Any]:
        """The document; on leaving, the file is replaced by it as a whole. Comments and order stay."""
        try:
            with _only_one(self.path.parent):
                if self.path.exists():
                    self.entries()
                    document = tomlkit.parse(self.path.read_text())
                else:
                    document = tomlkit.document()
                    document.add(tomlkit.comment(HEADER))
                yield document
                text = tomlkit.dumps(document)
                parse(text)
                _replace(self.path, text)
        except (OSError, TOMLKitError) as error:
            raise KeyFileError(f"cannot change the API keys: {error}") from error


class KeyStore:
    """The file as a verifier uses it: read again when it changes."""

    def __init__(self, path: Path, default: Quota | None = None) -> None:
        """Raises KeyFileError if the file is wrong now; later the last good one stays in use."""
        self._file, self._default = KeyFile(path), default
        self._seen = self._stamp()
        self._entries = self._file.entries(default)

    def of_key(self, key: str) -> Entry | None:
        """Whose key it is. Takes the same time whichever it is, or none."""
        presented = hash_of(key).encode()
        found = None
        for entry in self._current():
            for digest in entry.hashes:
                if hmac.compare_digest(presented, digest.encode()):
                    found = entry
        return found

    def of_certificate(self, names: Sequence[str]) -> Entry | None:
        """Whose certificate has these names."""
        return next((entry for entry in self._current() if entry.certificate and entry.certificate in names), None)

    def holders(self) -> dict[str, Entry]:
        """Who holds what: entries by the hashes of their keys, and by `certificate NAME`."""
        entries = self._current()
        by_key = {digest: entry for entry in entries for digest in entry.hashes}
        return by_key | {certificate_credential(e.certificate): e for e in entries if e.certificate}

    def _current(self) -> list[Entry]:
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._entries = self._file.entries(self._default)
                log.info("%s was read again: %d principals", self._file.path, len(self._entries))
            except KeyFileError as error:
                log.warning("%s; the keys read before stay in use", error)
            except Exception as error:  # a file that no parser foresaw, such as one that is nested too deeply
                log.warning("%s cannot be read (%s); the keys read before stay in use", self._file.path, error)
        return self._entries

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._file.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Two commands at once must not lose each other's key."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Put a whole file in the place of the old one, for the same owner; a new one is for its owner alone."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".keys-")
    try:
        with os.fdopen(descriptor, "w") as opened:
            opened.write(text)
        if path.exists():
            shutil.copymode(path, name)
            status = path.stat()
            with contextlib.suppress(PermissionError):
                os.chown(name, status.st_uid, status.st_gid)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
