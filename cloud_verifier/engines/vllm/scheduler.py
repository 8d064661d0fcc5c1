"""vLLM's scheduler, told before each step which requests may go on, in which order and with which guesses.

What it does with that is vLLM's own: chunks of prompts, pages, preemption. The class relies on the following of vLLM
0.32, whose scheduler is no public interface (`options.VERSION` holds it to that):

* `running` is served from its front, and its last requests are preempted first.
* A request of `running` sits out a step while `current_step < next_decode_eligible_step`.
* `spec_token_ids` of a running request are checked in the step; they are cut to what it has room for.
* `waiting` is served after `running`, and takes nobody's pages.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vllm.v1.core.sched.scheduler import Scheduler


class Part(NamedTuple):
    """Of a request in a step. positions: evaluated, guesses included. checked: guesses."""

    positions: int
    checked: int


class TurnScheduler(Scheduler):  # type: ignore[misc]
    """Only requests that have a turn go on; all others keep their pages as long as nobody with a turn needs them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._turns: Mapping[str, Sequence[int]] = {}
        self._latest_turn: dict[str, int] = {}  # the step in which each request last had one
        self.parts: dict[str, Part] = {}
        self.found: dict[str, int] = {}
        self.preemptions = self.prefix_query_tokens = self.prefix_hit_tokens = 0

    def take(self, turns: Mapping[str, Sequence[int]]) -> None:
        """For the next step: guesses by request id, most important first."""
        self._turns = turns

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step. Afterwards `parts` tells what each request gets, `found` what it had when it first ran."""
        turns, before = self._turns, self.preemptions
        order = {request_id: number for number, request_id in enumerate(turns)}
        for request_id in turns:
            self._latest_turn[request_id] = self.current_step
        apart = [request for request in self.waiting if request.request_id not in turns]
        waiting = sorted((r for r in self.waiting if r.request_id in turns), key=lambda r: order[r.request_id])
        self._wait_in_order(waiting)
        for request in self.running:
            request.spec_token_ids = []
            if request.request_id not in turns:
                request.next_decode_eligible_step = self.current_step + 2  # sits out the step that is made now
            elif _pending(request) == 1:
                request.spec_token_ids = list(turns[request.request_id])
        # Prompts after those that write, for a long one would take all positions of the step; whoever sits out last,
        # and of them who had no turn for longest, for those lose their pages first.
        self.running.sort(key=lambda r: self._rank(r, order))
        output = super().schedule(*args, **kwargs)
        self._note(output)
        stuck = any(request.request_id in turns for request in self.waiting)
        if stuck and self.preemptions == before and output.total_num_scheduled_tokens < self.max_num_scheduled_tokens:
            self._make_room()
        for request in apart:
            self.waiting.add_request(request)
        return output

    def _rank(self, request: Any, order: Mapping[str, int]) -> tuple[bool, bool, int]:
        number = order.get(request.request_id)
        if number is None:
            return True, False, -self._latest_turn.get(request.request_id, 0)
        return False, _pending(request) > 1, number

    def _wait_in_order(self, requests: Sequence[Any]) -> None:
        self.waiting.remove_requests(list(self.waiting))
        for request in requests:
            self.waiting.add_request(request)

    def _note(self, output: Any) -> None:
        guesses = output.scheduled_spec_decode_tokens
        self.parts = {
            request_id: Part(positions, len(guesses.get(request_id, ())))
            for request_id, positions in output.num_scheduled_tokens.items()
        }
        for new in output.scheduled_new_reqs:
            self.found[new.req_id] = new.num_computed_tokens
            self.prefix_query_tokens += self.requests[new.req_id].num_tokens
            self.prefix_hit_tokens += new.num_computed_tokens

    def _make_room(self) -> None:
        """Somebody with a turn waits for pages: whoever sat out longest gives up theirs, for the next step."""
        resting = [request for request in self.running if request.request_id not in self._turns]
        if resting:
            victim = min(resting, key=lambda request: self._latest_turn.get(request.request_id, 0))
            self.running.remove(victim)
            self._preempt_request(victim, time.monotonic())

    def _preempt_request(self, *args: Any, **kwargs: Any) -> None:
        self.preemptions += 1
        super()._preempt_request(*args, **kwargs)

    def forget(self, request_id: str) -> None:
        """A request has gone."""
        self._latest_turn.pop(request_id, None)
        self.found.pop(request_id, None)


def _pending(request: Any) -> int:
    """Tokens of a request that are not evaluated yet; more than one is a prompt being read."""
    return int(request.num_tokens - request.num_computed_tokens)
