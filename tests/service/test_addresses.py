"""Addresses: which machine is meant, which way goes there, and on which of its own a server listens."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from edge_client.assistant.serving import ServingError, listen
from edge_client.client import EdgeClient, SamplingParams
from edge_client.link.reachability import Reached, Refusal, Wanted, reach
from edge_client.link.security import Security, host_and_port
from edge_client.setup.connection import _with_port
from tests.harness import InProcessVerifier
from tests.mock_engine import MockEngine
from tests.service.raw import PROMPT, SEED


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:50051", ("127.0.0.1", 50051)),
        ("[::1]:50051", ("::1", 50051)),
        ("host.example:1", ("host.example", 1)),
    ],
)
def test_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert host_and_port(address) == parts


@pytest.mark.parametrize("address", ["::1:50051", "fe80::1:50051", "::1", "2001:db8::7:443"])
def test_an_ipv6_address_without_brackets_is_asked_for_with_them(address: str) -> None:
    """`::1:50051` is an address of its own, which is not this machine's."""
    with pytest.raises(ValueError, match=r"needs brackets, such as \[::1\]:50051"):
        EdgeClient(address)
    refusal = reach(address, "", Security())
    assert isinstance(refusal, Refusal)
    assert refusal.wanted is Wanted.ADDRESS


@pytest.mark.parametrize("address", ["host", ":5", "host:", "host:x", "host:²", "[]:5"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        EdgeClient(address)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("::1", "[::1]:50051"),
        ("[::1]", "[::1]:50051"),
        ("[::1]:7", "[::1]:7"),
        ("host", "host:50051"),
        ("a, b:7", "a:50051,b:7"),
    ],
)
def test_set_up_adds_the_usual_port(typed: str, completed: str) -> None:
    assert _with_port(typed) == completed


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_no_proxy_is_between_a_device_and_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:1")  # where nobody is
    with InProcessVerifier(MockEngine()) as verifier:
        for host in ("127.0.0.1", "localhost"):
            address = f"{host}:{verifier.address.rpartition(':')[2]}"
            with EdgeClient(address) as client:
                assert len(client.generate(PROMPT, SamplingParams(max_tokens=3), seed=SEED).token_ids) == 3
            assert isinstance(reach(address, "", Security()), Reached)


# -- where the assistant listens ---------------------------------------------------------------------------------------


def _named(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """A name with these addresses."""

    def look_up(_host: str, port: int, **_more: Any) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr("edge_client.assistant.serving.socket.getaddrinfo", look_up)


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


def test_a_name_s_every_address_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _named(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.1")
    sockets = listen("localhost", 0)
    (first, port), (second, same) = (one.getsockname() for one in sockets)
    _close(sockets)
    assert (first, second, port) == ("127.0.0.1", "127.0.0.2", same)
    assert port > 0


def test_an_address_that_this_machine_has_not_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _named(monkeypatch, "192.0.2.7", "127.0.0.1")
    sockets = listen("localhost", 0)
    assert [one.getsockname()[0] for one in sockets] == ["127.0.0.1"]
    _close(sockets)
    _named(monkeypatch, "192.0.2.7")
    with pytest.raises(ServingError, match="cannot listen on elsewhere:0"):
        listen("elsewhere", 0)


def test_half_a_name_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program answers on one of its addresses: whoever asks there would ask that one."""
    _named(monkeypatch, "127.0.0.1", "127.0.0.2")
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServingError, match="choose another --port"):
            listen("localhost", port)
        with socket.socket() as caller:
            assert caller.connect_ex(("127.0.0.1", port)) != 0
