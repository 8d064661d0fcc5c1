"""Faults one after the other, over devices that ask without pause; and what must hold in the end."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from outrider.v1 import verifier_pb2 as pb

from benchmarks.chaos.devices import SEEDS, Question, Tally, Worker, clients, questions
from benchmarks.chaos.plan import Fault
from benchmarks.chaos.verifier import HOUR_S
from benchmarks.chaos.victim import Victim
from edge_client.client import EdgeClient
from netlab.link_process import LinkProcess
from tests.service.raw import Stream

PROGRESS_S = 90.0  # without a word to any device: something hangs
BOUNDARY_S = 3.0  # to wait for a kind of message that may not come
HEAL_S = 30.0
Answers = dict[int, list[tuple[Question, tuple[int, ...]]]]


class Run:
    """One plan, carried out."""

    def __init__(self, target: str, devices: int, seed: int, on_fault: Callable[[Fault], None]) -> None:
        self.tally = Tally()
        self.done: Counter[str] = Counter()
        self.unreached = 0
        self.problems: list[str] = []
        self.left: dict[str, int] = {}
        self.starts = 0
        self._target, self._devices, self._on_fault = target, devices, on_fault
        self._rng = random.Random(f"{seed}/devices")
        self._faults: dict[str, Callable[[Fault], None]] = {
            "boundary": self._boundary,
            "cut": self._cut,
            "refuse": self._refuse,
            "stall": self._stall,
            "half_open": self._half_open,
            "rival": self._rival,
            "kill": self._kill,
            "drain": self._drain,
            "memory": self._memory,
            "exception": self._exception,
            "disk_full": self._disk_full,
            "clock": self._clock,
        }

    def carry_out(self, plan: Sequence[Fault]) -> None:
        """Start everything, do all faults, let everything come to rest, and look at what is left."""
        self._victim = Victim(self._target)
        address = ("127.0.0.1", self._victim.port)
        try:
            with LinkProcess(address) as self._link:
                expected = self._expected()
                with self._working(expected):
                    for fault in plan:
                        self._on_fault(fault)
                        if not self.tally.wait_for(fault.after_tokens, PROGRESS_S):
                            self.problems.append(f"no device heard anything for {PROGRESS_S:g} s before {fault}")
                            break
                        self._faults[fault.kind](fault)
                        self.done[fault.kind] += 1
                    self._victim.ask("go_on")
                self._rest()
        finally:
            self.starts = self._victim.starts
            if "Traceback" in self._victim.log:
                self.problems.append("the verifier's log has a traceback")
            if (code := self._victim.stop()) != 0:
                self.problems.append(f"the verifier ended with exit code {code}")
        self.problems += self.tally.wrong

    def _expected(self) -> Answers:
        """What every question's answer is when nothing happens, by seed."""
        with EdgeClient(f"127.0.0.1:{self._victim.port}") as client:
            return {
                seed: [
                    (question, client.generate(question.prompt, question.params, seed=seed).token_ids)
                    for question in questions(self._target, seed)
                ]
                for seed in SEEDS
            }

    @contextlib.contextmanager
    def _working(self, expected: Answers) -> Iterator[None]:
        workers, open_clients = [], []
        for client, seed in clients(self._target, f"127.0.0.1:{self._link.port}", self._devices):
            rng = random.Random(self._rng.random())
            worker = Worker(client, expected[seed], self.tally, rng)
            workers.append(worker)
            open_clients.append(client)
            worker.start()
        try:
            yield
        finally:
            for worker in workers:
                worker.stop()
            for worker in workers:
                worker.join(PROGRESS_S)
                if worker.is_alive():
                    self.problems.append("a device's last answer never ended")
            for client in open_clients:
                client.close()

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self._victim.port}"

    def _rest(self) -> None:
        """With no device left and all leases over, nothing of a session may be left."""
        deadline_s = time.monotonic() + HEAL_S
        while any((left := self._victim.ask("status")).values()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        self.left = left
        if any(left.values()):
            self.problems.append(f"left in the verifier: {left}")

    # -- faults, by kind ----------------------------------------------------------------------------------------------

    def _boundary(self, fault: Fault) -> None:
        self._victim.reached.clear()
        self._victim.ask("seek", fault.boundary)
        self.unreached += not self._victim.reached.wait(BOUNDARY_S)
        self._link.cut()
        self._victim.ask("go_on")

    def _cut(self, _fault: Fault) -> None:
        self._link.cut()

    def _refuse(self, fault: Fault) -> None:
        self._link.refuse()
        self._link.cut()
        time.sleep(fault.span_ms / 1e3)
        self._link.refuse(False)

    def _stall(self, fault: Fault) -> None:
        self._link.stall(fault.span_ms)

    def _half_open(self, fault: Fault) -> None:
        self._link.half_open(up=fault.up)

    def _rival(self, fault: Fault) -> None:
        """Another stream takes a device's session over; the device takes it back; the other comes again."""
        for session_id, prompt_length in self._victim.ask("sessions")[: fault.times]:
            resume = pb.Resume(session_id=session_id, known_length=prompt_length)
            for _ in range(fault.times):
                with (
                    contextlib.suppress(grpc.RpcError, StopIteration),
                    Stream(self._address, pb.Open(protocol_version=1, resume=resume)) as rival,
                ):
                    rival.opened()

    def _kill(self, _fault: Fault) -> None:
        self._victim.kill()
        self._victim.start()

    def _drain(self, _fault: Fault) -> None:
        if (code := self._victim.leave()) != 0:
            self.problems.append(f"the verifier left with exit code {code}")
        self._victim.start()

    def _memory(self, fault: Fault) -> None:
        self._victim.ask("memory", fault.times)

    def _exception(self, fault: Fault) -> None:
        self._victim.ask("exception", fault.times)

    def _disk_full(self, fault: Fault) -> None:
        self._victim.ask("disk_full", True)
        self._victim.ask("exception", fault.times)
        self.tally.wait_for(fault.after_tokens, PROGRESS_S)
        self._victim.ask("disk_full", False)

    def _clock(self, fault: Fault) -> None:
        self._victim.ask("clock", HOUR_S * fault.times * (1 if fault.up else -1))

    def figures(self) -> dict[str, Any]:
        """What came of it."""
        return {
            "faults": dict(self.done.most_common()),
            "boundaries_not_reached": self.unreached,
            "verifier_starts": self.starts,
            "sessions": dict(self.tally.outcomes.most_common()),
            "errors_continued_from": dict(self.tally.errors.most_common()),
            "tokens": self.tally.tokens,
            "left_in_the_verifier": self.left,
            "problems": self.problems,
        }
