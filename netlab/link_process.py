"""A `Link` in a process of its own, so that nothing else that runs in Python disturbs its timing.

::

    with LinkProcess(("127.0.0.1", 50051), LinkSettings.of_rtt(50)) as link:
        connect(link.port)

Parent and child speak JSON lines over the child's standard input and output: ``[verb, argument]`` one way and
``{"ok": value}`` or ``{"error": sentence}`` the other. The end of its input, which also the death of the parent brings,
ends the child.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from netlab.event_loop import precise_event_loop, wake_promptly
from netlab.link import Address, Link
from netlab.link_settings import LinkCounters, LinkSettings

STOP_SECONDS = 5.0
MOST_LINE_BYTES = 64 << 20  # settings may carry traces


class LinkProcessError(Exception):
    """The link's process did not do as it was told. The message says why."""


class LinkProcess:
    """The controls of a link that runs in a child process. May be used from any thread.

    Every method raises LinkProcessError if the process has ended.
    """

    def __init__(
        self, target: Address, settings: LinkSettings | None = None, *, listen: Address = ("127.0.0.1", 0)
    ) -> None:
        """Start the link; arguments as for `Link`. Raises LinkProcessError if the address cannot be listened on."""
        self._lock = threading.Lock()
        here = str(Path(__file__).resolve().parent.parent)
        search_path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        self._child = subprocess.Popen(
            [sys.executable, "-m", "netlab.link_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": search_path},
            text=True,
        )
        try:
            opening = {"target": target, "listen": listen, "settings": (settings or LinkSettings()).as_dict()}
            self.port = int(self._ask("start", opening))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Cut all connections and end the process. May be called again."""
        with self._lock:
            try:
                self._child.communicate(timeout=STOP_SECONDS)  # closes its input, which ends it
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.communicate()

    def __enter__(self) -> Self:
        """The link runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def counters(self) -> LinkCounters:
        """As `Link.counters`."""
        return LinkCounters(**self._ask("counters"))

    def reset_counters(self) -> None:
        """As `Link.reset_counters`."""
        self._ask("reset_counters")

    def configure(self, settings: LinkSettings) -> None:
        """As `Link.configure`."""
        self._ask("configure", settings.as_dict())

    def cut(self) -> None:
        """As `Link.cut`."""
        self._ask("cut")

    def half_open(self, *, up: bool) -> None:
        """As `Link.half_open`."""
        self._ask("half_open", up)

    def refuse(self, refusing: bool = True) -> None:
        """As `Link.refuse`."""
        self._ask("refuse", refusing)

    def stall(self, duration_ms: float) -> None:
        """As `Link.stall`."""
        self._ask("stall", duration_ms)

    def pause(self) -> None:
        """As `Link.pause`."""
        self._ask("pause")

    def resume(self) -> None:
        """As `Link.resume`."""
        self._ask("resume")

    def _ask(self, verb: str, argument: object = None) -> Any:
        with self._lock:
            try:
                assert self._child.stdin is not None
                assert self._child.stdout is not None
                self._child.stdin.write(json.dumps([verb, argument]) + "\n")
                self._child.stdin.flush()
                answer = json.loads(self._child.stdout.readline())
            except (OSError, ValueError) as error:  # broken pipe; closed file or no answer
                raise LinkProcessError(f"the link's process has ended; it cannot {verb}") from error
        if "error" in answer:
            raise LinkProcessError(answer["error"])
        return answer["ok"]


async def _serve() -> None:
    """The child: obey the lines on standard input until they end."""
    lines = asyncio.StreamReader(limit=MOST_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    _, opening = json.loads(await lines.readline())
    link = Link(tuple(opening["target"]), LinkSettings.of_dict(opening["settings"]), listen=tuple(opening["listen"]))
    try:
        await link.start()
    except OSError as error:
        host, port = opening["listen"]
        _answer({"error": f"the link cannot listen on {host}:{port}: {error}"})
        return
    _answer({"ok": link.port})
    verbs: dict[str, Callable[[Any], object]] = {
        "counters": lambda _: asdict(link.counters()),
        "reset_counters": lambda _: link.reset_counters(),
        "configure": lambda settings: link.configure(LinkSettings.of_dict(settings)),
        "cut": lambda _: link.cut(),
        "half_open": lambda up: link.half_open(up=up),
        "refuse": link.refuse,
        "stall": link.stall,
        "pause": lambda _: link.pause(),
        "resume": lambda _: link.resume(),
    }
    while line := await lines.readline():
        verb, argument = json.loads(line)
        _answer({"ok": verbs[verb](argument)})
    await link.stop()


def _answer(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to end
    wake_promptly()
    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        runner.run(_serve())
