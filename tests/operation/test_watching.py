"""What an operator sees of a verifier: access log, metrics, traces."""

from __future__ import annotations

import io
import json
import logging
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc
from prometheus_client.parser import text_string_to_metric_families

from cloud_verifier.observability import logs
from cloud_verifier.observability.interceptor import Call
from cloud_verifier.observability.metrics import Metrics
from cloud_verifier.observability.traces import Traces
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import InProcessVerifier
from tests.mock_engine import MockEngine, answer
from tests.service.raw import DEADLINE_S, PROMPT, SEED, Stream, opening, until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
WORDS = answer(PROMPT, SEED, 40)
WAITING = opening(sampling=pb.SamplingParams(max_tokens=40), patience_ms=PATIENCE_UNLIMITED_MS)
SHORT = opening(sampling=pb.SamplingParams(max_tokens=5))


class Ended:
    """Remembers the calls that ended."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def committed(self, call: Call, tokens: int, gap_s: float) -> None:
        assert gap_s >= 0
        assert tokens > 0

    def drafted(self, call: Call, tokens: int, turnaround_s: float | None) -> None:
        assert turnaround_s is None or turnaround_s >= 0

    def ended(self, call: Call) -> None:
        self.calls.append(call)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Log lines as JSON, and the logger as it was before when the test is over."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def ask(address: str, request: pb.Open, **metadata: str) -> tuple[list[int], dict[str, Any]]:
    """One session; its tokens and trailing metadata."""
    with grpc.insecure_channel(address) as channel:
        sent = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
        stream: Any = pb_grpc.VerifierServiceStub(channel).Generate(
            iter([pb.GenerateRequest(open=request)]), metadata=sent, timeout=DEADLINE_S
        )
        tokens = [token for response in stream for token in response.commit.tokens]
        return tokens, dict(stream.trailing_metadata())


def test_a_request_id_is_taken_if_sane_and_made_otherwise() -> None:
    with InProcessVerifier(MockEngine()) as verifier:
        assert ask(verifier.address, SHORT, x_request_id="abc-1.2")[1]["x-request-id"] == "abc-1.2"
        for bad in ("a b", "x" * 129, 'a"}', ""):
            made = ask(verifier.address, SHORT, x_request_id=bad)[1]["x-request-id"]
            assert made != bad
            assert len(made) == 16
        with Stream(verifier.address, opening(model="other")) as refused:
            assert refused.refusal().reason == "MODEL"
            assert "x-request-id" in dict(refused.trailers())


def test_every_call_leaves_one_line_without_a_word_of_text(lines: io.StringIO) -> None:
    with InProcessVerifier(MockEngine(), watchers=[logs.AccessLog()]) as verifier:
        request = opening(text="secretwords", sampling=pb.SamplingParams(max_tokens=5), want_text=True)
        tokens, _ = ask(verifier.address, request, x_request_id="mine", traceparent=f"00-{TRACE}-{SPAN}-01")
        ask(verifier.address, SHORT, traceparent="nonsense")
        with Stream(verifier.address, opening(model="other")) as refused:
            refused.refusal()
    records = [json.loads(line) for line in lines.getvalue().splitlines()]
    records = [record for record in records if record["logger"] == "cloud_verifier.access"]
    assert len(records) == 3
    first, second, third = records
    assert first["request_id"] == "mine"
    assert (first["trace_id"], first["parent_span_id"]) == (TRACE, SPAN)
    assert (first["method"], first["status"]) == ("/outrider.v1.VerifierService/Generate", "OK")
    assert first["principal"] == "anonymous"
    assert (first["model"], first["prompt_tokens"], first["tokens"]) == ("mock", len("secretwords"), 5)
    assert first["cached_prompt_tokens"] == 0
    assert first["duration_ms"] >= first["first_token_ms"] > 0
    assert "trace_id" not in second
    assert (third["status"], third["reason"]) == ("NOT_FOUND", "MODEL")
    assert "secretwords" not in lines.getvalue()
    assert len(tokens) == 5


@pytest.mark.usefixtures("lines")
def test_text_lines_and_what_makes_no_line() -> None:
    stream = io.StringIO()
    logs.configure("text", "info", stream)
    logs.AccessLog().ended(Call("/grpc.health.v1.Health/Check", "id"))
    logs.AccessLog().ended(Call("/outrider.v1.VerifierService/GetModelInfo", "id", ended_s=1.0))
    assert stream.getvalue().count("\n") == 1
    assert "call method=/outrider.v1.VerifierService/GetModelInfo status=OK duration_ms=" in stream.getvalue()


def test_metrics_say_what_the_sessions_themselves_report() -> None:
    metrics, watcher = Metrics(), Ended()
    with InProcessVerifier(MockEngine(), watchers=[watcher, metrics], metrics=metrics) as verifier:
        port, server = metrics.serve("127.0.0.1", 0)
        with Stream(verifier.address, WAITING) as stream:
            stream.opened()
            stream.tokens(1)
            known = len(PROMPT) + 1
            stream.draft(known, [*WORDS[1:5], WORDS[5] ^ 1], known)
            stream.half_close()
            stream.rest()
        ask(verifier.address, opening(continue_from=WORDS[:3], sampling=pb.SamplingParams(max_tokens=5)))
        with Stream(verifier.address, opening(model="other")) as refused:
            refused.refusal()
        until(lambda: len(watcher.calls) >= 3, "all calls have ended")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S) as reply:
            text = reply.read().decode()
        server.shutdown()
        server.server_close()
    values = {
        (sample.name, *(value for key, value in sorted(sample.labels.items()) if key != "model_name")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    finished = [call.finished.statistics for call in watcher.calls if call.finished is not None]
    assert len(finished) == 2
    accepted = sum(statistics.accepted_tokens for statistics in finished)
    assert values["outrider:spec_decode_num_accepted_tokens_total",] == accepted == 4
    per_position = {key[1]: v for key, v in values.items() if key[0].endswith("accepted_tokens_per_pos_total")}
    assert per_position == {"0": 1, "1": 1, "2": 1, "3": 1}
    assert values["outrider:draft_length_sum",] == 5
    assert values["outrider:turnaround_seconds_count",] == 1
    assert values["outrider:spec_decode_num_draft_tokens_total",] == sum(s.verified_tokens for s in finished)
    assert values["outrider:fills_total",] == sum(s.fills for s in finished)
    assert values["outrider:dropped_draft_tokens_total",] == sum(s.dropped_tokens for s in finished)
    assert values["outrider:received_draft_tokens_total",] == sum(call.drafted for call in watcher.calls)
    assert values["outrider:generation_tokens_total",] == 40 + 2
    assert values["outrider:prompt_tokens_total",] == len(PROMPT)
    assert values["outrider:session_resumes_total",] == 1
    assert values["outrider:request_success_total", "length"] == 2
    assert values["outrider:request_refused_total", "NOT_FOUND", "MODEL"] == 1
    assert values["outrider:time_to_first_token_seconds_count",] == 1
    assert values["outrider:e2e_request_latency_seconds_count",] == 2
    assert values["outrider:num_requests_running",] == values["outrider:kv_cache_usage_perc",] == 0


@pytest.mark.parametrize(
    "accepted",
    [
        # Prometheus 2, Prometheus 3, and 3 with the names of 2
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
        "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3",
        "application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.6,"
        "text/plain;version=1.0.0;escaping=underscores;q=0.5",
    ],
)
def test_every_prometheus_is_told_the_same_names(accepted: str) -> None:
    metrics = Metrics()
    metrics.ended(Call("/outrider.v1.VerifierService/Generate", "id", code="NOT_FOUND", reason="MODEL"))
    port, server = metrics.serve("127.0.0.1", 0)
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accepted})
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as reply:
        assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = reply.read().decode()
    server.shutdown()
    server.server_close()
    assert '\noutrider:request_refused_total{code="NOT_FOUND",reason="MODEL"} 1.0\n' in text
    assert "outrider_" not in text


def test_a_port_that_is_taken_is_an_error() -> None:
    port, server = Metrics().serve("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        Metrics().serve("127.0.0.1", port)
    server.shutdown()
    server.server_close()


def test_a_session_is_a_span_with_its_stages_inside_its_callers_trace() -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(SimpleSpanProcessor(exporter))
    with InProcessVerifier(MockEngine(), watchers=[traces]) as verifier:
        ask(verifier.address, SHORT, traceparent=f"00-{TRACE}-{SPAN}-01")
        with Stream(verifier.address, opening(model="other")) as refused:
            refused.refusal()
    traces.close()
    spans = exporter.get_finished_spans()
    sessions = {span.name: span for span in spans if span.name.startswith("text_completion")}
    session, failed = sessions["text_completion mock"], sessions["text_completion"]
    assert session.context.trace_id == int(TRACE, 16)
    assert session.parent is not None
    assert session.parent.span_id == int(SPAN, 16)
    assert session.attributes is not None
    assert session.attributes["gen_ai.usage.output_tokens"] == 5
    assert session.attributes["gen_ai.usage.input_tokens"] == len(PROMPT)
    assert session.attributes["gen_ai.usage.cache_read.input_tokens"] == 0
    assert session.attributes["gen_ai.request.max_tokens"] == 5
    assert session.attributes["gen_ai.response.finish_reasons"] == ("length",)
    children = [span for span in spans if span.parent and span.parent.span_id == session.context.span_id]
    assert [span.name for span in children] == ["open", "queue", "prefill", "decode"]
    times = [session.start_time, *(t for span in children for t in (span.start_time, span.end_time)), session.end_time]
    assert times == sorted(times, key=lambda time: time or 0)
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "MODEL"
    assert not failed.status.is_ok
