"""A `cloud-verifier serve` in a process of its own, for demos, experiments and end-to-end tests."""

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

MAX_LOG_BYTES = 1 << 20
READY = re.compile(r"^serving .* on (?P<host>\S+):(?P<port>\d+) ")


class VerifierProcessError(Exception):
    """The verifier did not start. The message carries what it printed."""


class VerifierProcess:
    """Starts a verifier and waits until it serves; a context manager.

    port: where it listens. pid: of the process, for measuring it.
    """

    def __init__(self, model: Path, *, port: int = 0, options: Sequence[str] = ()) -> None:
        """options: more flags of `cloud-verifier serve`. Raises VerifierProcessError."""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by stop()
        command = [
            sys.executable,
            "-m",
            "cloud_verifier",
            "serve",
            "--model",
            str(model),
            "--port",
            str(port),
            *options,
        ]
        self._child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
            cwd=Path(__file__).resolve().parent.parent,
        )
        assert self._child.stdout is not None
        try:
            self.banner = self._child.stdout.readline().strip()
        except BaseException:  # whoever waits is told to end
            self.kill()
            self.stop()
            raise
        ready = READY.match(self.banner)
        if ready is None:
            self._child.wait()
            raise VerifierProcessError(f"the verifier did not start: {self.banner}\n{self.log[-4000:]}")
        self.port = int(ready["port"])

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        return os.pread(self._log.fileno(), MAX_LOG_BYTES, 0).decode(errors="replace")

    @property
    def returncode(self) -> int | None:
        """How it ended, if it has."""
        return self._child.poll()

    def kill(self) -> None:
        """End it without a word, as a crash would."""
        self._child.send_signal(signal.SIGKILL)
        self._child.wait()

    def stop(self) -> None:
        """Ask it to end, and insist after ten seconds. May be called again."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
