"""Prometheus metrics of a verifier, under vLLM's names where the meaning is the same.

What the scheduler counts is read when somebody scrapes; only times are noted as they pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cloud_verifier.observability.interceptor import Call
from cloud_verifier.scheduling.scheduler import Scheduler
from cloud_verifier.serving.service import VerifierService

MODEL = "model_name"
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
FINISHED = {1: "stop", 2: "length", 3: "abort"}  # vLLM's words


class Metrics:
    """Of one process. Watches its calls; `watch` tells it of a model."""

    def __init__(self) -> None:
        # or else every counter comes twice, the second time as when it began
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.thread: Thread | None = None  # that answers scrapes
        self._by_model: list[Counter | Histogram] = []
        self._success = self._counter("request_success", "Sessions that were completed.", MODEL, "finished_reason")
        self._refused = self._counter("request_refused", "Calls that ended with an error.", "code", "reason")
        self._resumes = self._counter("session_resumes", "Streams that went on with an earlier session's log.", MODEL)
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts of sessions that were opened.", MODEL)
        self._generated = self._counter("generation_tokens", "Tokens that devices were sent.", MODEL)
        self._received = self._counter("received_draft_tokens", "Drafted tokens that came.", MODEL)
        self._dropped = self._counter("dropped_draft_tokens", "Of them dropped unread, in completed sessions.", MODEL)
        self._waited = self._counter("waited_seconds", "Waiting for drafts, in completed sessions.", MODEL)
        self._uplink = self._counter("uplink_bytes", "Bytes of messages from devices.", MODEL)
        self._downlink = self._counter("downlink_bytes", "Bytes of messages to devices.", MODEL)
        self._first = self._histogram("time_to_first_token_seconds", "Call to first token.", SECONDS)
        self._queue = self._histogram("request_queue_time_seconds", "Ready but not running before the first.", SECONDS)
        self._between = self._histogram("inter_token_latency_seconds", "Between two commits of a stream.", STEP_SECONDS)
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean after the first, of completed streams.", STEP_SECONDS
        )
        self._total = self._histogram("e2e_request_latency_seconds", "Whole completed streams.", SECONDS)
        self._length = self._histogram("draft_length", "Tokens of a draft message.", TOKENS)
        self._turnaround = self._histogram(
            "turnaround_seconds", "Commit to the first draft that knows of it: round trip and drafting.", STEP_SECONDS
        )

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        counter = Counter(f"outrider:{name}", words, labels, registry=self.registry)
        if labels == (MODEL,):
            self._by_model.append(counter)
        return counter

    def _histogram(self, name: str, words: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(f"outrider:{name}", words, [MODEL], buckets=buckets, registry=self.registry)
        self._by_model.append(histogram)
        return histogram

    def watch(self, model: str, service: VerifierService, scheduler: Scheduler) -> None:
        """Export what a model's scheduler counts, and zeros of what has not happened yet, so that rates begin there."""
        for metric in self._by_model:
            metric.labels(model)
        for reason in FINISHED.values():
            self._success.labels(model, reason)
        self.registry.register(_SchedulerCounters(model, service, scheduler))

    def serve(self, host: str, port: int) -> tuple[int, Any]:
        """Answer scrapes on a thread of its own; returns the port, and what has `shutdown`. Raises OSError."""
        server, self.thread = start_http_server(port, host, self.registry)
        server.set_app(_in_plain_text(server.get_app()))
        return server.server_port, server

    def committed(self, call: Call, tokens: int, gap_s: float) -> None:
        self._generated.labels(call.model).inc(tokens)
        if call.last_commit_s:
            self._between.labels(call.model).observe(gap_s)
        elif not call.resumed:
            self._first.labels(call.model).observe(gap_s)
            self._queue.labels(call.model).observe(call.first_queue_s)

    def drafted(self, call: Call, tokens: int, turnaround_s: float | None) -> None:
        self._received.labels(call.model).inc(tokens)
        if tokens:
            self._length.labels(call.model).observe(tokens)
        if turnaround_s is not None:
            self._turnaround.labels(call.model).observe(turnaround_s)

    def ended(self, call: Call) -> None:
        if call.code not in ("OK", "CANCELLED"):
            self._refused.labels(call.code, call.reason).inc()
        if not call.opened_s:
            return
        model = call.model
        self._uplink.labels(model).inc(call.uplink_bytes)
        self._downlink.labels(model).inc(call.downlink_bytes)
        if call.resumed:
            self._resumes.labels(model).inc()
        else:
            self._prompt.labels(model).inc(call.prompt_tokens)
        if call.finished is None:
            return
        self._success.labels(model, FINISHED.get(call.finished.reason, "unknown")).inc()
        self._dropped.labels(model).inc(call.finished.statistics.dropped_tokens)
        self._waited.labels(model).inc(call.finished.statistics.waited_us / 1e6)
        self._total.labels(model).observe(call.ended_s - call.started_s)
        if call.tokens > 1:
            self._per_token.labels(model).observe((call.last_commit_s - call.first_token_s) / (call.tokens - 1))


def _in_plain_text(app: Any) -> Any:
    """Answers in the plain text format whatever a scraper would rather have.

    In OpenMetrics prometheus_client writes samples with "_" for ":" unless it is asked not to, which Prometheus 2 does
    not do: its series then have other names than the dashboard's (prometheus/client_python, issue 1177).
    """

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        return app({**environ, "HTTP_ACCEPT": "text/plain; version=0.0.4"}, start_response)

    return answer


class _SchedulerCounters(Collector):
    """Reads a scheduler's counters at every scrape, from the scraping thread: each is one number, read at once."""

    def __init__(self, model: str, service: VerifierService, scheduler: Scheduler) -> None:
        self._model, self._service, self._scheduler = model, service, scheduler

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        figures = self._scheduler.counters
        counters = {
            "engine_steps": ("Forwards of the target.", figures.steps),
            "engine_step_seconds": ("Time spent in them.", figures.step_s),
            "fills": ("Tokens written without a guess to check.", figures.fills),
            "spec_decode_num_drafts": ("Checks of a session's drafted tokens: one forward each.", figures.drafts),
            "spec_decode_num_draft_tokens": ("Drafted tokens that the target checked.", figures.draft_positions),
            "spec_decode_num_accepted_tokens": (
                "Drafted tokens accepted; of the checked ones: acceptance rate.",
                figures.accepted_tokens,
            ),
            "own_guesses_checked": ("Guesses of the verifier's own that the target checked.", figures.own_positions),
            "own_guesses_accepted": ("Those of them that were right.", figures.own_accepted_tokens),
            "trimmed_draft_tokens": ("Guesses that a step had no room for.", figures.trimmed_draft_tokens),
            "prefix_cache_queries": ("Tokens looked up in the prefix cache.", figures.prefix_query_tokens),
            "prefix_cache_hits": ("Tokens found there.", figures.prefix_hit_tokens),
            "num_preemptions": ("Sessions whose KV cache was given up for another's.", figures.preemptions),
        }
        gauges = {
            "num_requests_running": ("Sessions in the engine.", self._scheduler.running),
            "num_requests_waiting": ("Sessions that wait for a place.", self._service.waiting),
            "engine_step_left_out": ("Sessions that were due but had no part in a step.", figures.sessions_waiting),
            "sessions": ("Sessions known, those whose device is away included.", self._service.sessions),
            "streams": ("Sessions with a device at the other end.", self._service.streams),
            "engine_step_sessions": ("Sessions in the latest step.", figures.sessions_in_step),
            "kv_cache_usage_perc": (
                "Share of the KV pool in use, 0 to 1.",
                _usage(figures.pages_used, self._scheduler),
            ),
        }
        for name, (words, value) in counters.items():
            counter = CounterMetricFamily(f"outrider:{name}", words, labels=[MODEL])
            counter.add_metric([self._model], value)
            yield counter
        positions = CounterMetricFamily("outrider:engine_positions", "Positions evaluated.", labels=[MODEL, "kind"])
        positions.add_metric([self._model, "prompt"], figures.prompt_positions)
        positions.add_metric([self._model, "pending"], figures.pending_positions)
        positions.add_metric([self._model, "draft"], figures.draft_positions)
        positions.add_metric([self._model, "own"], figures.own_positions)
        yield positions
        accepted = CounterMetricFamily(
            "outrider:spec_decode_num_accepted_tokens_per_pos",
            "Drafted tokens accepted, by place in what was checked at once.",
            labels=[MODEL, "position"],
        )
        for position, count in enumerate(list(figures.accepted_by_position)):
            accepted.add_metric([self._model, str(position)], count)
        yield accepted
        for name, (words, value) in gauges.items():
            gauge = GaugeMetricFamily(f"outrider:{name}", words, labels=[MODEL])
            gauge.add_metric([self._model], value)
            yield gauge


def _usage(pages_used: int, scheduler: Scheduler) -> float:
    """Of pages if the engine has them, else of its places."""
    total = scheduler.counters.pages_total
    return pages_used / total if total else scheduler.running / scheduler.engine.info.max_sequences
