"""The verifier that faults befall, as its parent process holds it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

ANSWER_S = 60.0
MOST_LOG_BYTES = 16 << 20


class Victim:
    """A `benchmarks.chaos.verifier` in a process of its own, started again on the same port as often as need be."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `stop`
        self.port = 0
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start and wait until it serves."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos.verifier", str(self.port), self._target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.reached = threading.Event()
        threading.Thread(target=self._listen, args=(self._child, self._answers, self.reached), daemon=True).start()
        self.port = int(self._answers.get(timeout=ANSWER_S)["port"])
        self.starts += 1

    @staticmethod
    def _listen(
        child: subprocess.Popen[str], answers: queue.SimpleQueue[dict[str, Any]], reached: threading.Event
    ) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            said = json.loads(line)
            if "reached" in said:
                reached.set()
            else:
                answers.put(said)

    def ask(self, verb: str, argument: object = None) -> Any:
        """Have it do something."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps([verb, argument]) + "\n")
        self._child.stdin.flush()
        return self._answers.get(timeout=ANSWER_S)["ok"]

    def kill(self) -> None:
        """End it without a word."""
        self._child.send_signal(signal.SIGKILL)
        self._gone()

    def leave(self) -> int:
        """Tell it to leave; returns how it ended."""
        self._child.terminate()
        return self._gone()

    def _gone(self) -> int:
        code = self._child.wait(timeout=ANSWER_S)
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        return code

    @property
    def log(self) -> str:
        """All that its lives have written to standard error."""
        return os.pread(self._log.fileno(), MOST_LOG_BYTES, 0).decode(errors="replace")

    def stop(self) -> int:
        """End it for good; returns how it ended."""
        if self._child.returncode is None:
            self.leave()
        self._log.close()
        return self._child.returncode
