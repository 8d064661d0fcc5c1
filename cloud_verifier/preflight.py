"""What a start would fail on after a model was loaded, checked before: in milliseconds, and without torch."""

from __future__ import annotations

import importlib.util

from outrider_cli.extras import install

NEEDED = {
    "torch": "evaluates the target",
    "transformers": "loads the target and its tokenizer",
    "grpc": "talks to devices",
    "grpc_health": "answers health checks",
    "grpc_reflection": "lets grpcurl list the service",
    "jinja2": "applies chat templates",
    "prometheus_client": "serves metrics",
    "tomlkit": "edits the file of API keys",
}
DISTRIBUTIONS = {"grpc": "grpcio", "grpc_health": "grpcio-health-checking", "grpc_reflection": "grpcio-reflection"}


def missing_packages() -> str:
    """A sentence that names what serving lacks and says how to get it; empty if it has everything."""
    missing = [DISTRIBUTIONS.get(module, module) for module in NEEDED if importlib.util.find_spec(module) is None]
    return f"serving needs {', '.join(missing)}, not installed here: {install('verifier')}" if missing else ""
