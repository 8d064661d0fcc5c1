"""Prometheus metrics of the device, under the names that the field's dashboards know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edge_client.types import RequestOutput

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_PER_TOKEN_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)


class AssistantMetrics:
    """Of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._running = Gauge("outrider:num_requests_running", "Requests being answered.", registry=self._registry)
        self._ended = self._counter("request_success", "Choices completed, by why they ended.", "finished_reason")
        self._failed = self._counter("request_failure", "Requests refused or failed, by status.", "status")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._generated = self._counter("generation_tokens", "Tokens answered.")
        self._drafted = self._counter("spec_decode_num_draft_tokens", "Tokens drafted, checked by the target or not.")
        self._accepted = self._counter(
            "spec_decode_num_accepted_tokens", "Drafted tokens accepted; of the drafted ones: draft efficiency."
        )
        self._drafts = self._counter("spec_decode_num_drafts", "Messages with drafts.")
        self._uplink = self._counter("uplink_bytes", "Bytes sent to the verifier.")
        self._downlink = self._counter("downlink_bytes", "Bytes received from the verifier.")
        self._resumes = self._counter("session_resumes", "Streams that broke and were resumed.")
        self._fallback = self._counter("fallback", "Answers that the device finished otherwise, by why.", "reason")
        self._first = self._histogram("time_to_first_token_seconds", "Time to the first token.", _SECONDS)
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first.", _PER_TOKEN_SECONDS
        )
        self._total = self._histogram("e2e_request_latency_seconds", "Time of whole answers.", _SECONDS)
        self._rtt = self._histogram("rtt_seconds", "Median round trip of an answer.", _SECONDS)

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"outrider:{name}", words, labels, registry=self._registry)

    def _histogram(self, name: str, words: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"outrider:{name}", words, buckets=buckets, registry=self._registry)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While a request is answered."""
        self._running.inc()
        try:
            yield
        finally:
            self._running.dec()

    def failed(self, status: int) -> None:
        """A request was refused or failed."""
        self._failed.labels(status).inc()

    def answered(self, output: RequestOutput) -> None:
        """A choice is complete."""
        metrics = output.metrics
        self._ended.labels(output.finish_reason).inc()
        self._prompt.inc(output.prompt_tokens)
        self._generated.inc(len(output.token_ids))
        self._drafted.inc(metrics.drafted_tokens)
        self._accepted.inc(metrics.accepted_tokens)
        self._drafts.inc(metrics.draft_messages)
        self._uplink.inc(metrics.uplink_bytes)
        self._downlink.inc(metrics.downlink_bytes)
        self._resumes.inc(metrics.reconnects)
        if output.offline is not None:
            self._fallback.labels("offline").inc()
        self._first.observe(metrics.ttft_ms / 1e3)
        self._total.observe(metrics.total_ms / 1e3)
        if len(output.token_ids) > 1:
            self._per_token.observe(metrics.ms_per_token / 1e3)
        if metrics.rtt_ms is not None:
            self._rtt.observe(metrics.rtt_ms / 1e3)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
