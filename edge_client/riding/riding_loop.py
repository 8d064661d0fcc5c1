"""The riding loop: drafts while commits arrive.

One thread drafts for one session. Before every single token it looks at its inbox, so a commit is honoured at once:
what it agrees with is spent, what it contradicts is rolled back to the agreed prefix. The pace says whether to draft
one more token, to send what there is, or to wait. A drafter that fails, or hangs, costs speed and nothing else: what
the verifier says reaches the caller by another thread, see `answer`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from outrider.v1 import verifier_pb2 as pb

from edge_client.drafters.base import MOST_PATH_TOKENS, Candidates, DrafterError
from edge_client.drafters.vocabulary.strategy import Match
from edge_client.link.inbox import Callback, Heard, Message, PromptKnown, Reconnected, Stop
from edge_client.link.session_link import SessionLink, now_us
from edge_client.riding.commit_reader import Ride
from edge_client.riding.drafter_lease import DrafterLease
from speculation.device_tree import DeviceTree, Node
from speculation.noise import NOISE_VERSION
from speculation.pace.base import Action, News, Pace, View
from speculation.sampling import Guess, SamplingParams

log = logging.getLogger(__name__)


class Guesses(NamedTuple):
    """What to guess at a place, the likeliest first, and how sure the drafter is of each; both empty for nothing."""

    tokens: list[int]
    confidences: list[float]


class RidingLoop:
    """Drafts for one session until it is told to stop. Not reusable.

    inbox: what the session has heard, in order. guessed: the line's tokens by position; another object whenever the
    line was begun anew. Both are for the thread that follows the answer.
    """

    def __init__(
        self,
        link: SessionLink,
        lease: DrafterLease | None,
        pace: Pace,
        params: SamplingParams,
        seed: int,
        match: Callable[[pb.GetModelInfoResponse, Callable[[Match], None]], None] | None = None,
        *,
        ride: Ride | None = None,
        answered: Sequence[int] = (),
    ) -> None:
        """match: finds out how the drafter can speak another vocabulary and calls back, at once or from any thread.

        ride: where to count. answered: tokens that an earlier session has committed.
        """
        self._link, self._lease, self._pace, self._match = link, lease, pace, match
        self._answered = answered
        self._guess = Guess(params, seed)
        self._greedy = params.greedy
        self._line = DeviceTree([])
        self._tip: Node | None = None  # where the pace was asked about drawing
        self._held: Node | None = None  # the drafter has read the log and the path up to here, if it holds as much
        self._in_flight = False
        self._told_patience_ms: int | None = pace.patience_ms
        self._unsent_since_s = 0.0
        self._budget = 0
        self._deepest = 0  # guesses past the log that verifier and drafter can hold
        self._trees = False
        self._draft_bytes: dict[int, int] = {}  # by the clock reading that its echo will bring
        self._opened: pb.Opened | None = None
        self._waits_for_prompt: DrafterLease | None = None
        self._owed_since_s: float | None = None  # when it began to work on the next guess
        self._sending = threading.Lock()  # what is sent says where the line ends, and goes out in that order
        self._gave_up = False
        self.ride = ride or Ride()
        self.inbox: queue.SimpleQueue[Message | Stop] = queue.SimpleQueue()
        self.guessed: dict[int, int] = {}
        self.started = False
        self.ended = threading.Event()

    # -- for the thread that follows the answer ------------------------------------------------------------------------

    def start(self, when_done: Callable[[], None]) -> None:
        """Ride on a thread of its own; `when_done` is called there, once nothing here uses the drafter any more."""

        def ride() -> None:
            try:
                self.run()
            finally:
                self.ended.set()
                when_done()

        threading.Thread(target=ride, name="outrider-draft", daemon=True).start()
        self.started = True

    def stop(self, *, learn: bool = False) -> None:
        """Draft no more. A call into the drafter that has begun is not waited for."""
        self.inbox.put(Stop(learn))

    @property
    def busy_s(self) -> float:
        """How long the present call into the drafter has taken so far."""
        lease = self._lease
        return lease.busy_s if lease is not None else 0.0

    @property
    def kept_waiting_ms(self) -> float:
        """How long a verifier that waits for guesses has been kept waiting for the next one; 0 if it does not wait."""
        since_s = self._owed_since_s
        return (time.perf_counter() - since_s) * 1e3 if since_s is not None and self._told_patience_ms else 0.0

    @property
    def told_patience_ms(self) -> int:
        """How long the verifier waits for guesses, as it was told last."""
        return self._told_patience_ms or 0

    @property
    def reacts(self) -> bool:
        """Whether it will look at its inbox soon: it neither ended in trouble nor is within a call into the drafter."""
        return not self._gave_up and not self.busy_s

    def stop_waiting(self) -> None:
        """Tell a verifier that waits to go on by itself; it is asked to wait again with the next guess.

        Lost without a stream: say it again on the next one, if the loop does not react by then.
        """
        line = self._line
        with self._sending:
            self._told_patience_ms = 0
            draft = pb.Draft(start=line.length, known_length=line.length, patience_ms=0)
            self._link.send(pb.GenerateRequest(draft=draft))

    # -- the ride ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Draft until told to stop. Whatever goes wrong here costs speed alone."""
        try:
            if self._ride().learn:
                self._learn()
        except BaseException as error:  # a SystemExit, or a panic in Rust, would leave a verifier waiting
            log.exception("drafting failed")
            self._notice(f"drafting failed ({type(error).__name__}: {error}); the answer goes on as plain streaming")
            self._gave_up = True
            self.stop_waiting()

    def _ride(self) -> Stop:
        inbox = self.inbox
        while True:
            while not inbox.empty():
                if isinstance(message := inbox.get(), Stop):
                    return message
                self._handle(message)
            view = self._view()
            action = self._pace.next(view) if self._opened else Action.WAIT
            if action is Action.DRAFT and not self._more_patience():
                self._draft(view)
            elif (
                action is Action.FLUSH
                or self._pace.patience_ms != self._told_patience_ms
                or self._waited_for_in_vain(view)
            ):
                self._flush()
            else:
                self._owed_since_s = None
                if isinstance(waited_for := self._next_message(), Stop):
                    return waited_for
                if waited_for is not None:
                    self._handle(waited_for)

    def _next_message(self) -> Message | Stop | None:
        """Waits for a message, or None when a drafter that has used up its share of the time may go on."""
        rest_ms = self._rest_ms()
        if not rest_ms:
            return self.inbox.get()
        try:
            return self.inbox.get(timeout=rest_ms / 1e3)
        except queue.Empty:
            return None

    def _rest_ms(self) -> float:
        duty = self._lease.duty if self._lease is not None else None
        return duty.wait_ms(time.perf_counter() * 1e3) if duty is not None else 0.0

    def _waited_for_in_vain(self, view: View) -> bool:
        """Whether a patient verifier waits for guesses that will not come: it should go on by itself."""
        idle = self._lease is not None and not view.can_draft and not view.nodes and not view.in_flight
        return idle and self._opened is not None and self._pace.patience_ms > 0

    def _learn(self) -> None:
        if self._lease is None or self._opened is None:
            return
        try:
            self._lease.learn(self._line.log, self._opened.prompt_length)
            return
        except DrafterError as error:
            notice = str(error)
        except BaseException as error:  # the answer is complete, whatever becomes of the memory of it
            notice = f"the drafter could not learn from the answer ({type(error).__name__}: {error})"
        log.warning("%s", notice)
        self._lease.notices.append(notice)  # the answer has been told: the next one says so

    def _more_patience(self) -> bool:
        """Whether the verifier should wait longer than it knows: it has to be told before the guesses come."""
        return self._told_patience_ms is not None and self._pace.patience_ms > self._told_patience_ms

    def _view(self) -> View:
        line, lease, pace = self._line, self._lease, self._pace
        now_s = time.perf_counter()
        line.lead, line.typical = pace.lead_tokens, pace.typical
        depth, survival, value = 0, 0.0, 0.0
        self._tip = tip = line.tip
        if tip is not None:
            depth, survival, value = line.depth(tip), line.survival(tip), line.value(tip)
        unsent = line.unsent
        return View(
            now_ms=now_s * 1e3,
            known_length=line.length,
            depth=depth,
            nodes=line.nodes,
            unsent=unsent,
            unsent_age_ms=(now_s - self._unsent_since_s) * 1e3 if unsent else 0.0,
            survival=survival,
            value=value,
            open_mass=line.open_mass,
            sent_mass=line.sent_mass,
            in_flight=self._in_flight,
            can_draft=lease is not None and tip is not None and depth < self._deepest and not self._rest_ms(),
            budget=self._budget,
            branches=self._trees,
        )

    # -- what comes in ------------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> None:
        if isinstance(message, Reconnected):
            with self._sending:
                self._line.unsend()
            self._in_flight = False
            self._told_patience_ms = None  # it may be another verifier, which knows Open's only
        elif isinstance(message, Callback):
            message.run()
        elif isinstance(message, PromptKnown):
            self._learn_prompt(message.ids)
        elif isinstance(message, Heard):
            kind = message.response.WhichOneof("message")
            if kind == "opened":
                self._open(message.response.opened)
            elif kind == "commit":
                self._commit(message.response.commit, message)

    def _open(self, opened: pb.Opened) -> None:
        before, self._opened = self._opened, opened
        self._budget = self._deepest = opened.max_lookahead
        if self._lease is not None:
            self._deepest = min(self._deepest, self._lease.most_ahead)
        self._trees = opened.max_tree_nodes > 0
        if before is not None:
            if not opened.prompt_ids:
                opened.prompt_ids[:] = before.prompt_ids
            # This may be another verifier, which takes less.
            with self._sending:
                if not self._trees:
                    self._line.straighten()
                self._line.trim(opened.max_lookahead, opened.max_tree_nodes or opened.max_lookahead)
            return
        # Only a drafter looks at the prompt, and it waits for one that is not told yet: until then its length counts.
        self._line.log = list(opened.prompt_ids) or [0] * opened.prompt_length
        self._line.log += self._answered
        self._line.erase()
        if self._lease is not None:
            self._attach(self._lease, opened)

    def _learn_prompt(self, ids: list[int]) -> None:
        """The prompt's tokens, which Opened had not."""
        assert self._opened is not None
        self._opened.prompt_ids[:] = ids
        self._line.log[: len(ids)] = ids
        if (lease := self._waits_for_prompt) is not None:
            self._waits_for_prompt = None
            self._attach(lease, self._opened)

    def attach_drafter(self, lease: DrafterLease, pace: Pace | None) -> None:
        """The drafter has become free for this session: to be called on its own thread. pace: to ride with from now on,
        if that is another."""
        self._pace = pace or self._pace
        if self._opened is None:
            self._lease = lease
        else:
            self._attach(lease, self._opened)

    def _attach(self, lease: DrafterLease, opened: pb.Opened) -> None:
        if len(opened.prompt_ids) < opened.prompt_length:
            self._lease, self._waits_for_prompt = None, lease
        elif opened.model_info.noise_version != NOISE_VERSION and not self._greedy:
            self._lose_drafter(f"the verifier uses version {opened.model_info.noise_version} of the shared noise")
        elif lease.speaks(opened.model_info):
            self._begin_drafting(lease, opened.model_info)
        elif self._match is None:
            self._lose_drafter("the drafter's vocabulary is not the target's")
        else:  # which is no reason to wait: words come meanwhile
            self._lease = None
            inbox, matched = self.inbox, self._matched
            self._match(opened.model_info, lambda found: inbox.put(Callback(lambda: matched(lease, found))))

    def _matched(self, lease: DrafterLease, found: Match) -> None:
        """The drafter of another vocabulary can now draft, or not."""
        assert self._opened is not None
        if found.speaking is None:
            self._lose_drafter(found.sentence)
            return
        with self._losing_drafter():
            lease.exchange(found.speaking)
            self._begin_drafting(lease, self._opened.model_info)

    def _begin_drafting(self, lease: DrafterLease, info: pb.GetModelInfoResponse) -> None:
        assert self._opened is not None
        self._lease, self._deepest, self._held = lease, min(self._opened.max_lookahead, lease.most_ahead), None
        self._line.erase()
        self.ride.notices += lease.notices
        lease.notices.clear()
        with self._losing_drafter():
            for notice in lease.adopt_vocabulary(info.vocabulary_fingerprint, info.vocabulary_size):
                self._notice(notice)
            lease.keep_common_prefix(self._line.log)

    def _commit(self, commit: pb.Commit, heard: Heard) -> None:
        line, known = self._line, self._line.length
        with self._sending:
            new, agreed, outcomes = line.commit(commit.start, commit.tokens)
        if agreed < len(new):
            self.guessed = {}
        elif any(self.guessed.get(known + i) != token for i, token in enumerate(new)):  # another branch stands
            self.guessed = dict(enumerate(line.line, line.length))
        if self._lease is not None:
            with self._losing_drafter():
                self._lease.follow(known, new)
        self._in_flight = False
        self._budget = commit.draft_budget
        if not new:
            return
        skipped = len(commit.tokens) - len(new)
        self._pace.heard(
            News(
                now_ms=heard.at_ms,
                known_length=line.length,
                new_tokens=len(new),
                outcomes=outcomes,
                used=(commit.drafted_mask >> skipped & ((1 << len(new)) - 1)).bit_count(),
                rtt_ms=heard.rtt_ms,
                forward_ms=commit.forward_us / 1e3,
                queue_ms=commit.queue_us / 1e3,
                echoed_bytes=self._draft_bytes.get(commit.echo_sent_at_us, 0),
                standing=line.sent,
                own=(commit.own_mask >> skipped).bit_count(),
            )
        )
        self._draft_bytes = {at: size for at, size in self._draft_bytes.items() if at >= commit.echo_sent_at_us}

    # -- what goes out ------------------------------------------------------------------------------------------------

    def _draft(self, view: View) -> None:
        """Feed the drafter a piece of what it lacks; once it has everything, draw guesses at the tip."""
        lease, line, tip = self._lease, self._line, self._tip
        assert lease is not None
        assert tip is not None
        began_s = time.perf_counter()
        if self._owed_since_s is None:
            self._owed_since_s = began_s
        drawn = None
        with self._losing_drafter():
            drawn = self._draw(lease, tip, view)
        now_s = time.perf_counter()
        if lease.duty is not None:
            lease.duty.spend(began_s * 1e3, now_s * 1e3)
        if drawn is None or self._lease is None:
            return
        draft_ms, count = (now_s - began_s) * 1e3, 0
        fresh = not line.unsent
        for at, (tokens, confidences) in reversed(drawn):  # the first is drawn on: the latest
            count += self._grow(at, tokens, confidences)
        if fresh and line.unsent:
            self._unsent_since_s = now_s
        first = drawn[0][1].confidences
        if first:  # else it has nothing to say here
            self._owed_since_s = None
            self._pace.drafted(draft_ms, first[0], len(drawn))
        self.ride.drafted_tokens += count
        self.ride.drafting_ms += draft_ms

    def _grow(self, tip: Node, tokens: list[int], confidences: list[float]) -> int:
        """Put what was drawn at a tip into the tree; how many guesses of it."""
        line = self._line
        if not tokens:
            line.grow(tip, (), (), ())
            return 0
        depth = line.depth(tip)
        probabilities = self._pace.judge(confidences, depth, line.survival(tip))
        if (count := len(probabilities)) < len(tokens):
            tokens, confidences = tokens[:count], confidences[:count]
        line.grow(tip, tokens, confidences, probabilities)
        self.guessed.setdefault(line.length + depth, tokens[0])
        return count

    def _draw(self, lease: DrafterLease, tip: Node, view: View) -> list[tuple[Node, Guesses]] | None:
        """Guesses at a tip, the likeliest first, and at others if that pays; none at one where the drafter has nothing
        to say, None while it still reads."""
        end = view.known_length + view.depth
        lease.reach(end)
        line = self._line
        if tip.parent is self._held is not None and lease.end == end - 1:  # as on a line, before every guess
            lacking = [tip.token]
        else:
            lacking = lease.lacks(line.log, line.path(tip), lease.piece.tokens)
            if lease.end + len(lacking) < end:
                self._held = None
                lease.read(lacking)
                return None
        others = self._others(lease, view) if self._trees and lease.most_tips > 1 else []
        beside: list[Candidates] = []
        if others:
            beside = lease.feed_beside(lacking, view.known_length, [line.path_to(other) for other in others])
        else:
            lease.feed(lacking)
        self._held = tip
        drawn = [(tip, self._ranked(end, lease.candidates()))]
        drawn += [(at, self._ranked(at.position + 1, found)) for at, found in zip(others, beside, strict=True)]
        return drawn

    def _others(self, lease: DrafterLease, view: View) -> list[Node]:
        """Tips beside the best one that are worth drawing at in the same evaluation."""
        line, pace = self._line, self._pace
        most = min(lease.most_tips, 1 + (view.budget - view.nodes) // pace.width)
        if most < 2 or pace.width == 1:
            return []
        farthest = view.known_length + min(self._deepest - 1, MOST_PATH_TOKENS, lease.room(view.known_length))
        first, *others = line.tips(most)
        others = [other for other in others if other.position < farthest]
        return others[: pace.tips([line.value(first), *map(line.value, others)]) - 1] if others else []

    def _ranked(self, position: int, candidates: Candidates) -> Guesses:
        """What to guess at a position, and how sure the drafter is of each."""
        if not len(candidates.ids):
            return Guesses([], [])
        if not self._trees or self._pace.width == 1:
            token, confidence = self._guess(position, *candidates)
            guesses = Guesses([token], [confidence])
        else:
            guesses = Guesses(*self._guess.ranked(self._pace.width, position, *candidates))
        for token, confidence in zip(*guesses, strict=True):
            self._check(token, confidence)
        return guesses

    def _check(self, token: int, confidence: float) -> None:
        """The verifier would end the session over a guess that cannot be one. Raises DrafterError."""
        assert self._opened is not None
        limit = self._opened.model_info.vocabulary_size
        if not 0 <= token < limit:
            raise DrafterError(f"it drafted token {token}, but the target's ids are below {limit}")
        if not 0.0 <= confidence <= 1.0:  # NaN too
            raise DrafterError(f"its log-probabilities make no sense: they give a confidence of {confidence}")

    def _flush(self) -> None:
        with self._sending:
            start, tokens, confidences, parents = self._line.flush()
            draft = pb.Draft(
                start=start,
                tokens=tokens,
                parents=parents,
                known_length=self._line.length,
                sent_at_us=now_us(),
                confidence=bytes(min(255, round(c * 255)) for c in confidences),
            )
            if self._pace.patience_ms != self._told_patience_ms:
                draft.patience_ms = self._told_patience_ms = self._pace.patience_ms
            self._draft_bytes[draft.sent_at_us] = draft.ByteSize()
            self._link.send(pb.GenerateRequest(draft=draft))
        # A draft that brings nothing but a patience asks for nothing: no commit will answer it.
        self._in_flight |= bool(tokens) or not draft.HasField("patience_ms")
        self.ride.draft_messages += 1

    @contextlib.contextmanager
    def _losing_drafter(self) -> Iterator[None]:
        """A drafter may fail in any way its runtime can; the answer goes on without it."""
        try:
            yield
        except BaseException as error:
            self._lose_drafter(f"the drafter failed ({type(error).__name__}: {error})")

    def _lose_drafter(self, reason: str) -> None:
        """Go on as plain streaming, and say so once."""
        self._lease = None
        with self._sending:
            self._line.erase()
        self.guessed = {}
        self._pace.reset()
        self._notice(f"{reason}; the answer goes on as plain streaming")

    def _notice(self, notice: str) -> None:
        self.ride.notices.append(notice)
        log.warning("%s", notice)
