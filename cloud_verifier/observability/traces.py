"""OpenTelemetry traces: a span for every session's stream, with its stages as children.

Spans are made when a stream has ended, from the times that were noted meanwhile, so that tracing costs nothing per
token. Where they go is OpenTelemetry's own business: its OTEL_* environment variables.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cloud_verifier.observability.interceptor import Call

FINISHED = {1: "stop", 2: "length", 3: "cancelled"}


class Traces:
    """Watches calls; `close` sends what is left."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        """processor: where spans go; without one, over OTLP as the environment says."""
        if processor is None:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            processor = BatchSpanProcessor(OTLPSpanExporter())
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before this name.
        resource = Resource({"service.name": "cloud-verifier"}).merge(_of_environment())
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("outrider")

    def close(self) -> None:
        """Send what is left, and stop."""
        self._provider.shutdown()

    def committed(self, call: Call, tokens: int, gap_s: float) -> None:
        """Nothing: spans come at the end."""

    def drafted(self, call: Call, tokens: int, turnaround_s: float | None) -> None:
        """Nothing either."""

    def ended(self, call: Call) -> None:
        if not call.generates:
            return
        parent = TraceContextTextMapPropagator().extract({"traceparent": call.traceparent})
        operation = call.kind or "text_completion"
        span = self._tracer.start_span(
            f"{operation} {call.model}".strip(),
            parent,
            kind=trace.SpanKind.SERVER,
            attributes=_attributes(call, operation),
            start_time=call.started_ns,
        )
        if call.code not in ("OK", "CANCELLED"):
            span.set_attribute("error.type", call.reason or call.code)
            span.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(span)
        queued_s = min(call.first_token_s, call.opened_s + call.first_queue_s)
        stages = {
            "open": (call.started_s, call.opened_s),
            "queue": (call.opened_s, queued_s),
            "prefill": (queued_s, call.first_token_s),
            "decode": (call.first_token_s, call.last_commit_s),
        }
        for name, (start_s, end_s) in stages.items():
            if start_s and end_s:
                child = self._tracer.start_span(name, inside, start_time=_unix_ns(call, start_s))
                child.end(_unix_ns(call, end_s))
        span.end(_unix_ns(call, call.ended_s))


def _of_environment() -> Resource:
    from opentelemetry.sdk.resources import OTELResourceDetector

    return OTELResourceDetector().detect()


def _unix_ns(call: Call, moment_s: float) -> int:
    return call.started_ns + round((moment_s - call.started_s) * 1e9)


def _attributes(call: Call, operation: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "outrider",
        "gen_ai.request.model": call.model,
        "gen_ai.response.model": call.model,
        "gen_ai.usage.input_tokens": call.prompt_tokens,
        "gen_ai.usage.output_tokens": call.tokens,
        "outrider.request_id": call.request_id,
        "outrider.resumed": call.resumed,
        "outrider.drafted_tokens": call.drafted,
    }
    if call.sampling is not None:
        for name in ("temperature", "top_p", "max_tokens"):
            if call.sampling.HasField(name):
                attributes[f"gen_ai.request.{name}"] = getattr(call.sampling, name)
        if call.sampling.top_k:
            attributes["gen_ai.request.top_k"] = call.sampling.top_k
    if call.first_token_s:
        attributes["gen_ai.response.time_to_first_chunk"] = call.first_token_s - call.started_s
    if call.finished is not None:
        attributes["gen_ai.response.finish_reasons"] = [FINISHED.get(call.finished.reason, "unknown")]
        attributes["gen_ai.usage.cache_read.input_tokens"] = call.finished.usage.cached_prompt_tokens
        attributes["outrider.accepted_tokens"] = call.finished.statistics.accepted_tokens
        attributes["outrider.target_forwards"] = call.finished.statistics.target_forwards
    return attributes
