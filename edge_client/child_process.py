"""Run a module of ours in a Python interpreter of its own, for native code that may end the process it runs in.

A fresh interpreter and never a fork: the caller has threads. Task, answer and complaints travel in files, which cannot
block as full pipes do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

IN_CHILD = "OUTRIDER_CHILD_PROCESS"  # set in the environment of every child
_KILL_S = 5.0  # a process that waits for a driver may outlive its kill; nobody waits longer for it


@dataclass(frozen=True)
class Ended:
    """How a child ended. returncode: as `subprocess` has it; None if it was killed at its deadline.

    output: what it answered. errors: the rest of what it printed.
    """

    returncode: int | None
    output: str
    errors: str

    @property
    def signal_name(self) -> str:
        """SIGILL, SIGSEGV...; empty if no signal ended it."""
        if self.returncode is None or self.returncode >= 0:
            return ""
        try:
            return signal.Signals(-self.returncode).name
        except ValueError:  # a real-time signal
            return f"signal {-self.returncode}"

    @property
    def last_words(self) -> str:
        """The last line that it printed."""
        lines = [line for line in map(str.strip, self.errors.splitlines()) if line]
        return lines[-1] if lines else ""


def run_module(module: str, task: str, deadline_s: float) -> Ended:
    """`python -m module` with `task` as its standard input, killed after so long.

    Raises OSError where no interpreter can be started.
    """
    environment = {
        **os.environ,
        IN_CHILD: "1",
        "PYTHONPATH": os.pathsep.join(part or os.getcwd() for part in sys.path),
        "GGML_NO_BACKTRACE": "1",  # or llama.cpp calls a debugger when it aborts
    }
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as printed:
        told.write(task.encode())
        told.seek(0)
        process = subprocess.Popen(
            [_python(), "-P", "-m", module, str(deadline_s)], stdin=told, stdout=answer, stderr=printed, env=environment
        )
        try:
            returncode: int | None = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            returncode = None
        finally:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_KILL_S)
        return Ended(returncode, _text(answer), _text(printed))


def serve_task() -> tuple[str, TextIO]:
    """In the child: its task, and where to write the answer. What is printed otherwise goes to standard error.

    The child leaves no core file, and ends by itself after its deadline, should the parent be gone by then.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows; a limit that cannot be set
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if len(sys.argv) > 1 and hasattr(signal, "alarm"):
        signal.alarm(int(float(sys.argv[1])) + 1)
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # runtimes print what they like, and not by Python alone
    return sys.stdin.read(), answer


def _python() -> str:
    """An application that has Python inside is no interpreter: started again it would be a second application."""
    name = Path(sys.executable or "").name.lower()
    if getattr(sys, "frozen", False) or ("python" not in name and "pypy" not in name):
        raise FileNotFoundError(f"there is no Python interpreter to start: sys.executable is {sys.executable!r}")
    return sys.executable


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
