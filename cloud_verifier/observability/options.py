"""The flags by which an operator watches a verifier, and what is made of them."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from outrider_cli.extras import install

if TYPE_CHECKING:
    from cloud_verifier.observability.interceptor import Watcher
    from cloud_verifier.observability.metrics import Metrics

LOG_LEVELS = ["debug", "info", "warning", "error"]


@dataclass
class ObservabilityHooks:
    """Whoever watches the calls, and the metrics, if anybody asks for them."""

    watchers: list[Watcher] = field(default_factory=list)
    metrics: Metrics | None = None


def watching_options(command: Any) -> Any:
    """Logs, metrics and traces."""
    flags: list[tuple[str, dict[str, Any]]] = [
        ("--log-format", {"default": "text", "type": click.Choice(["text", "json"]), "help": "Of standard error."}),
        ("--log-level", {"default": "info", "type": click.Choice(LOG_LEVELS), "help": "Least that is logged."}),
        (
            "--metrics-port",
            {
                "default": None,
                "type": click.IntRange(0, 65535),
                "help": "Serve Prometheus metrics over HTTP on this port; 0 takes a free one.  [default: none]",
            },
        ),
        ("--metrics-host", {"default": "127.0.0.1", "help": "Address that metrics are served on."}),
        (
            "--otel/--no-otel",
            {"default": False, "help": "Send OpenTelemetry traces; the OTEL_* environment says where to."},
        ),
    ]
    for name, settings in reversed(flags):
        command = click.option(name, show_envvar=True, **settings)(command)
    return command


@contextlib.contextmanager
def watching(options: dict[str, Any]) -> Iterator[ObservabilityHooks]:
    """Begin to log, to measure and to trace as `watching_options` say. Raises click.ClickException."""
    from cloud_verifier.observability import logs

    if options["log_format"] == "json":
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars are no JSON
    logs.configure(options["log_format"], options["log_level"])
    eyes = ObservabilityHooks([logs.AccessLog()])
    with contextlib.ExitStack() as ending:
        if options["otel"]:
            try:
                from cloud_verifier.observability.traces import Traces
            except ImportError as error:
                raise click.ClickException(f"{error}; --otel needs more: {install('otel')}") from error
            traces = Traces()
            ending.callback(traces.close)
            eyes.watchers.append(traces)
        if options["metrics_port"] is not None:
            from cloud_verifier.observability.metrics import Metrics

            eyes.metrics = Metrics()
            try:
                port, server = eyes.metrics.serve(options["metrics_host"], options["metrics_port"])
            except OSError as error:
                where = f"{options['metrics_host']}:{options['metrics_port']}"
                raise click.ClickException(f"cannot serve metrics on {where}: {error}; try another port") from error
            ending.callback(server.server_close)
            ending.callback(server.shutdown)
            eyes.watchers.append(eyes.metrics)
            where = f"http://{options['metrics_host']}:{port}/metrics"
            logging.getLogger(__name__).info("metrics at %s", where)
        yield eyes
