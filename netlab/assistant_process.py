"""An `edge-client serve` in a process of its own, for experiments and end-to-end tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

READY = re.compile(r"^serving answers .* at (?P<url>http://\S+/v1) ")


class AssistantProcessError(Exception):
    """The assistant did not start. The message carries what it printed."""


class AssistantProcess:
    """Starts an assistant and waits until it answers; a context manager. url: OpenAI's base_url."""

    def __init__(self, verifier: str, *, drafter: str = "none", options: Sequence[str] = ()) -> None:
        """options: more flags of `edge-client serve`. Raises AssistantProcessError."""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by stop()
        self._child = subprocess.Popen(
            [
                *(sys.executable, "-m", "edge_client", "serve", "--port", "0"),
                *("--verifier", verifier, "--drafter", drafter, *options),
            ],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
            cwd=Path(__file__).resolve().parent.parent,
        )
        assert self._child.stdout is not None
        banner = self._child.stdout.readline().strip()
        ready = READY.match(banner)
        if ready is None:
            self._child.wait()
            raise AssistantProcessError(f"the assistant did not start: {banner}\n{self.log()[-4000:]}")
        self.url = ready["url"]

    def log(self) -> str:
        """What it has written to standard error."""
        self._log.seek(0)
        return self._log.read()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def stop(self) -> int:
        """Ask it to end, as Ctrl-C does, and insist after ten seconds; returns its exit code. May be called again."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        return self._child.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._log.close()
