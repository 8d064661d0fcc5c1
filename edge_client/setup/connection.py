"""Find the way to the verifier, with a person's help: what it demands is asked for, and nothing else."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from dataclasses import dataclass, replace
from pathlib import Path

import click

from edge_client.link.reachability import Reached, Refusal, Wanted, reach
from edge_client.link.security import Security

PORT = 50051
MOST_QUESTIONS = 8
_NONE = Path("-")


@dataclass(frozen=True)
class Way:
    """Where the verifier is and what it takes to be let in. key_file: where `security.api_key` is kept, if it is."""

    verifier: str
    model: str
    security: Security
    key_file: Path | None = None

    @property
    def settings(self) -> dict[str, object]:
        """As a configuration file has them."""
        security = self.security
        files = {
            "ssl-ca-certs": security.ca_certificate,
            "ssl-client-certfile": security.certificate,
            "ssl-client-keyfile": security.key,
            "verifier-api-key-file": self.key_file,
        }
        found: dict[str, object] = {"verifier": self.verifier}
        if self.model:
            found["model"] = self.model
        found |= {name: str(file.expanduser().absolute()) for name, file in files.items() if file is not None}
        found |= {name: True for name, on in (("tls", security.tls), ("insecure", security.insecure)) if on}
        return found


def ask_address(known: str) -> str:
    """HOST:PORT, with the usual port if none is said. known: the one to press Enter for."""
    return _with_port(str(click.prompt("Address of the verifier, HOST:PORT", default=known)))


def connect(way: Way, key_file: Path, *, asking: bool, any_address: bool) -> tuple[Way, Reached | Refusal]:
    """Try, and ask for what is missing until it works or there is no answer. key_file: where a key that somebody types
    is to be kept; nothing is written here. asking: whether there is anybody to ask. any_address: the way's key may be
    shown to another address, too, if one is typed.

    A typed key is for the address that it was typed for, and one that is refused is not part of the way.
    """
    key = way.security.api_key, way.key_file  # not typed here
    for _ in range(MOST_QUESTIONS if asking else 1):
        answer = reach(way.verifier, way.model, way.security)
        if isinstance(answer, Reached) or not asking:
            break
        click.echo(answer.sentence)
        changed = _changed(way, answer.wanted, key_file)
        if changed is None:
            break
        if changed.verifier != way.verifier:
            key = key if any_address else ("", None)
            changed = _with_key(changed, *key)
        way = changed
    if isinstance(answer, Refusal) and answer.wanted is Wanted.KEY:
        way = _with_key(way, *key)
    return way, answer


def _changed(way: Way, wanted: Wanted, key_file: Path) -> Way | None:
    """The way with what was asked for; None if there was no answer."""
    match wanted:
        case Wanted.TLS:
            return _with_tls(way, _ask_file("Certificate of its authority, a PEM file; empty for the system's"))
        case Wanted.PROTECTION:
            own = _ask_file(
                "Certificate of its authority, a PEM file; empty for the system's; - to do without TLS", "-"
            )
            return replace(way, security=replace(way.security, insecure=True)) if own == _NONE else _with_tls(way, own)
        case Wanted.AUTHORITY:
            file = _ask_file("Certificate of its authority, a PEM file")
            if file is None:
                return None
            return replace(way, security=replace(way.security, ca_certificate=file))
        case Wanted.CLIENT_CERTIFICATE:
            certificate = _ask_file("This device's certificate, a PEM file")
            key = _ask_file("Its private key") if certificate is not None else None
            if key is None:
                return None
            return replace(way, security=replace(way.security, certificate=certificate, key=key))
        case Wanted.KEY:
            said = click.prompt("This device's API key (not shown)", default="", hide_input=True, show_default=False)
            text = str(said).strip()
            return _with_key(way, text, key_file) if text else None
        case Wanted.ADDRESS:
            said = click.prompt("Another address; empty to go on without the verifier", default="", show_default=False)
            return _elsewhere(way, _with_port(str(said))) if said else None
        case Wanted.NOTHING_FROM_HERE:
            return None


def _elsewhere(way: Way, address: str) -> Way:
    """Whoever allowed plaintext to one machine has not allowed it to another."""
    same_host = address.rpartition(":")[0] == way.verifier.rpartition(":")[0]
    security = replace(way.security, insecure=way.security.insecure and same_host)
    return replace(way, verifier=address, security=security)


def _with_key(way: Way, key: str, file: Path | None) -> Way:
    return replace(way, security=replace(way.security, api_key=key), key_file=file)


def _with_tls(way: Way, authority: Path | None) -> Way:
    return replace(way, security=replace(way.security, tls=authority is None, ca_certificate=authority, insecure=False))


def _ask_file(question: str, *others: str) -> Path | None:
    """A file that is there, or one of `others`; None for no answer."""
    while said := str(click.prompt(question, default="", show_default=False)).strip():
        file = Path(said).expanduser()
        if said in others or (file.is_file() and os.access(file, os.R_OK)):
            return file
        click.echo(f"{file} is no file that can be read; try again, or leave it empty")
    return None


def _with_port(address: str) -> str:
    """Adds the usual port where there is none."""

    def completed(one: str) -> str:
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(one).version == 6:
                return f"[{one}]:{PORT}"
        return one if ":" in one and not one.endswith("]") else f"{one}:{PORT}"

    return ",".join(map(completed, map(str.strip, address.split(","))))
