"""Spans over OTLP: `cloud-verifier serve --otel` to something that receives as a Collector does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from edge_client.client import EdgeClient
from netlab.verifier_process import VerifierProcess
from speculation.sampling import SamplingParams
from tests.service.raw import until

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans, and the service that sent them."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, _: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            names = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.services.add(names["service.name"])
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    receiving, server = Receiver(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiving, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "tested-verifier")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield receiving
    server.stop(None)


def test_a_collector_is_sent_the_spans_of_a_session(receiver: Receiver) -> None:
    with VerifierProcess(DEMO / "target", options=["--threads", "1", "--otel"]) as verifier:
        with EdgeClient(verifier.address) as client:
            client.generate("Hello", SamplingParams(max_tokens=4), seed=1)
        stages = {"open", "queue", "prefill", "decode"}
        until(lambda: stages <= {span.name for span in receiver.spans}, "the spans have come")
    assert receiver.services == {"tested-verifier"}
    (whole,) = [span for span in receiver.spans if not span.parent_span_id]
    assert {span.parent_span_id for span in receiver.spans if span is not whole} == {whole.span_id}
    assert "gen_ai.usage.output_tokens" in {one.key for one in whole.attributes}
