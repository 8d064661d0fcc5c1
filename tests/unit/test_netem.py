"""What the kernel's netem is told, and what netlab says that it cannot."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from netlab import netem
from netlab.link_settings import LinkSettings
from netlab.netem import NetemError, Plan
from netlab.traces import RateTrace, RttTrace


def lines(settings: LinkSettings, interface: str = "eth0") -> list[str]:
    return [" ".join(command) for command in netem.plan(settings, interface).commands]


def test_delays_each_way_and_the_redirection_of_what_comes_in() -> None:
    plan = netem.plan(LinkSettings(delay_up_ms=10, delay_down_ms=30), "eth0")
    assert [" ".join(command) for command in plan.commands] == [
        "tc qdisc add dev eth0 root handle 1: netem limit 100000 delay 10ms",
        "ip link add ifb-netlab type ifb",
        "ip link set ifb-netlab up",
        "tc qdisc add dev eth0 handle ffff: ingress",
        "tc filter add dev eth0 parent ffff: matchall action mirred egress redirect dev ifb-netlab",
        "tc qdisc add dev ifb-netlab root handle 1: netem limit 100000 delay 30ms",
    ]
    assert len(plan.undo) == 3
    assert plan.differences == ()


@pytest.mark.parametrize(
    ("model", "delay"),
    [
        ("uniform", "delay 12ms 2ms rate"),
        ("normal", "delay 12ms 1ms distribution normal rate"),
        ("lognormal", "delay 12ms 2.62ms distribution paretonormal rate"),
        ("pareto", "delay 12ms 4.48ms distribution pareto rate"),
    ],
)
def test_jitter_has_its_mean_and_a_rate_that_keeps_the_order(model: str, delay: str) -> None:
    assert delay in lines(LinkSettings(delay_up_ms=10, jitter_ms=4, jitter_model=model))[0]


def test_a_rate_alone_is_netems_and_one_with_a_queue_a_token_bucket() -> None:
    settings = LinkSettings(up_kbps=8_000, down_kbps=40_000)
    assert lines(settings)[0].endswith("delay 0ms rate 8000kbit")
    bucket = lines(replace(settings, queue_ms=150, burst_bytes=9000))
    assert bucket[1] == "tc qdisc add dev eth0 parent 1: handle 2: tbf rate 8000kbit burst 9000 latency 150ms"
    assert bucket[-1].endswith("tbf rate 40000kbit burst 20000 latency 150ms")  # what passes in a tick of the kernel


def test_losses_and_outages() -> None:
    assert lines(LinkSettings(loss=0.01))[0].endswith("loss 1.0000%")
    outages = LinkSettings(loss=0.01, good_ms=2000, bad_ms=100, bad_loss=0.5)
    assert lines(outages)[0].endswith("loss gemodel 1.0000% 20.0000% 50.0000% 1.0000%")


def test_it_says_what_netem_cannot() -> None:
    settings = LinkSettings(
        jitter_ms=3,
        jitter_model="lognormal",
        queue_ms=5,
        good_ms=900,
        bad_ms=100,
        rtt_trace=RttTrace((0, 1, 2), (10, 30, 50)),
        rate_trace=RateTrace((0, 1, 2), (100, 0, 300), (7, 7, 7)),
    )
    plan = netem.plan(settings, "lo")
    text = " ".join(plan.differences)
    for words in ("loopback", "trace of round trips", "trace of rates", "in packets, not in time", "holds them back",
                  "loss_stall_ms", "lognormal", "drops packets", "seed"):  # fmt: skip
        assert words in text
    assert " delay 16.5ms " in " ".join(plan.commands[0])
    assert "rate 200kbit" in " ".join(plan.commands[1])
    assert len(plan.undo) == 1


def tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f'#!/bin/sh\necho "$0 $@" >> {folder}/log\n{script}\n')
    (folder / name).chmod(0o755)


def test_applying_runs_all_and_takes_back_what_was_done_before_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = netem.plan(LinkSettings(delay_up_ms=1), "eth0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NetemError, match=r"there is no ip here; it comes with iproute2"):
        netem.apply(plan)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    tool(tmp_path, "tc", "")
    tool(tmp_path, "ip", "")
    netem.apply(plan)
    assert len((tmp_path / "log").read_text().splitlines()) == len(plan.commands)
    (tmp_path / "log").unlink()
    tool(tmp_path, "ip", 'echo "RTNETLINK answers: Operation not permitted" >&2; exit 2')
    with pytest.raises(NetemError, match=r"'ip link add ifb-netlab type ifb' failed: .*; it takes root's rights"):
        netem.apply(plan)
    log = (tmp_path / "log").read_text().splitlines()
    assert len(log) == 2 + len(plan.undo)
    assert log[2].endswith("tc qdisc del dev eth0 root")


def test_what_was_there_before_is_left_alone_if_the_first_command_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    tool(tmp_path, "tc", 'echo "Error: Exclusivity flag on, cannot modify." >&2; exit 2')
    with pytest.raises(NetemError, match=r"Exclusivity flag on, cannot modify$"):
        netem.apply(Plan((("tc", "add"),), (("tc", "del"),), ()))
    assert len((tmp_path / "log").read_text().splitlines()) == 1
