"""The kernel's own link emulator, netem, told to behave as `LinkSettings` say, as far as it can.

netem shapes what leaves an interface; what comes in is first redirected to an `ifb` device and shaped there. It works
on packets, beneath TCP, for everything that uses the interface; `netlab link` works on the bytes of one proxied port.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
from dataclasses import dataclass

from netlab import jitter
from netlab.link_settings import LinkSettings

IFB = "ifb-netlab"
LOOPBACK = "lo"
LIMIT_PACKETS = 100_000  # netem's own limit of 1,000 would drop what a long fat link holds
PACKETS_PER_SECOND = 50  # assumed where netem counts packets and we count time
ORDERLY = "10gbit"  # with any rate netem keeps packets in order
LEAST_BURST_BYTES = 1600  # a packet with its headers
TICKS_PER_SECOND = 250  # of the kernel; a bucket must hold what passes in one
HINTS = {
    "not permitted": "it takes root's rights (CAP_NET_ADMIN)",
    "kind is unknown": "this kernel comes without the modules sch_netem, sch_tbf and ifb, or they are not loaded",
    "Unknown device type": "this kernel comes without the module ifb, or it is not loaded",
}

Command = tuple[str, ...]


class NetemError(Exception):
    """The commands could not be run. The message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """commands: in order. undo: takes all back. differences: sentences on what netem does otherwise or not at all."""

    commands: tuple[Command, ...]
    undo: tuple[Command, ...]
    differences: tuple[str, ...]


def plan(settings: LinkSettings, interface: str) -> Plan:
    """How to give an interface this behaviour. Up is what leaves by it, down what comes in."""
    commands = _shape(settings, interface, up=True)
    undo: list[Command] = [("tc", "qdisc", "del", "dev", interface, "root")]
    if interface != LOOPBACK:
        commands += [
            ("ip", "link", "add", IFB, "type", "ifb"),
            ("ip", "link", "set", IFB, "up"),
            ("tc", "qdisc", "add", "dev", interface, "handle", "ffff:", "ingress"),
            (
                *("tc", "filter", "add", "dev", interface, "parent", "ffff:", "matchall"),
                *("action", "mirred", "egress", "redirect", "dev", IFB),
            ),
            *_shape(settings, IFB, up=False),
        ]
        undo += [("tc", "qdisc", "del", "dev", interface, "ingress"), ("ip", "link", "del", IFB)]
    return Plan(tuple(commands), tuple(undo), tuple(_differences(settings, interface)))


def apply(plan: Plan) -> None:
    """Run the commands; on a failure, take back what was done and raise NetemError."""
    for tool in sorted({command[0] for command in plan.commands}):
        if shutil.which(tool) is None:
            raise NetemError(f"there is no {tool} here; it comes with iproute2, on Linux only")
    for done, command in enumerate(plan.commands):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            for undo in plan.undo if done else ():
                subprocess.run(undo, capture_output=True, check=False)
            reason = " ".join(result.stderr.split()) or f"exit status {result.returncode}"
            hint = next((f"; {hint}" for words, hint in HINTS.items() if words in reason), "")
            raise NetemError(f"{' '.join(command)!r} failed: {reason.rstrip('.')}{hint}")


def _shape(settings: LinkSettings, interface: str, *, up: bool) -> list[Command]:
    """Commands for what leaves an interface."""
    delay_ms = settings.delay_up_ms if up else settings.delay_down_ms
    if settings.rtt_trace:
        delay_ms = settings.rtt_trace.median_ms / 2
    kbps = settings.up_kbps if up else settings.down_kbps
    if trace := settings.rate_trace:
        kbps = statistics.median([rate for rate in (trace.up_kbps if up else trace.down_kbps) if rate])
    netem = ["limit", str(LIMIT_PACKETS), *_delay(delay_ms, settings)]
    netem += _loss(settings)
    bucket = bool(kbps) and bool(settings.burst_bytes or settings.queue_ms)
    if kbps and not bucket:
        netem += ["rate", _rate(kbps)]
    elif settings.jitter_ms:
        netem += ["rate", ORDERLY]
    commands: list[Command] = [("tc", "qdisc", "add", "dev", interface, "root", "handle", "1:", "netem", *netem)]
    if bucket:
        burst = max(settings.burst_bytes, LEAST_BURST_BYTES, round(kbps * 125 / TICKS_PER_SECOND))
        latency = _ms(settings.queue_ms or 1000)
        tbf = ("rate", _rate(kbps), "burst", str(burst), "latency", latency)
        commands.append(("tc", "qdisc", "add", "dev", interface, "parent", "1:", "handle", "2:", "tbf", *tbf))
    return commands


def _delay(delay_ms: float, settings: LinkSettings) -> list[str]:
    """Mean and deviation as netem has them: uniform from mean - deviation to mean + deviation, else a scale."""
    if not settings.jitter_ms:
        return ["delay", _ms(delay_ms)]
    mean_ms = settings.jitter_ms / 2
    deviation_ms, distribution = {
        jitter.UNIFORM: (mean_ms, []),  # what it does unasked; not every tc knows the name
        "normal": (mean_ms / 2, ["distribution", "normal"]),
        "lognormal": (mean_ms * 1.31, ["distribution", "paretonormal"]),  # sqrt(e - 1)
        "pareto": (mean_ms * 2.24, ["distribution", "pareto"]),  # sqrt(5)
    }[settings.jitter_model]
    return ["delay", _ms(delay_ms + mean_ms), _ms(deviation_ms), *distribution]


def _loss(settings: LinkSettings) -> list[str]:
    if settings.bad_ms:
        leaves_good, leaves_bad = (
            min(1.0, 1000 / (mean_ms * PACKETS_PER_SECOND)) for mean_ms in (settings.good_ms, settings.bad_ms)
        )
        shares = (leaves_good, leaves_bad, settings.bad_loss, settings.loss)
        return ["loss", "gemodel", *(f"{share:.4%}" for share in shares)]
    return ["loss", f"{settings.loss:.4%}"] if settings.loss else []


def _differences(settings: LinkSettings, interface: str) -> list[str]:
    sentences = []
    if interface == LOOPBACK:
        sentences.append("On the loopback everything leaves by the same interface: the way up stands for both.")
    if settings.rtt_trace:
        sentences.append("netem replays no trace of round trips: its median stands in.")
    if settings.rate_trace:
        sentences.append("netem replays no trace of rates: the median of those above 0 stands in.")
    if settings.bad_ms:
        sentences.append(
            f"netem's outages are counted in packets, not in time: the figures assume {PACKETS_PER_SECOND} packets a "
            "second. They come to each direction on its own."
        )
        if settings.bad_loss == 1:
            sentences.append("In an outage netem loses packets where netlab holds them back until it ends.")
    if settings.loss or settings.bad_ms:
        sentences.append("netem loses packets and TCP says what that costs: loss_stall_ms has no effect.")
    if settings.jitter_ms and settings.jitter_model in ("lognormal", "pareto"):
        sentences.append(f"netem has no such {settings.jitter_model} jitter: its own heavy-tailed table stands in.")
    if settings.queue_ms:
        sentences.append("A full queue drops packets, where netlab makes the senders wait.")
    if settings.jitter_ms or settings.loss or settings.bad_ms:
        sentences.append("netem draws its own random numbers: seed and offset_ms have no effect.")
    return sentences


def _ms(value: float) -> str:
    return f"{value:.6g}ms"


def _rate(kbps: float) -> str:
    return f"{max(1, round(kbps))}kbit"
