"""The command `cloud-verifier`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloud_verifier.observability.options import ObservabilityHooks, watching, watching_options
from cloud_verifier.security.cli import keys as keys_commands
from outrider_cli.config import config_command, config_option
from speculation.draft_tree import MAX_LOOKAHEAD

if TYPE_CHECKING:
    from cloud_verifier.serving.address import Address

# Two OpenMP pools that spin on one machine starve each other: a 20 ms step then takes most of a second.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# gRPC's own notes on connections quote what strangers say on them.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

SETTINGS = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "OUTRIDER_VERIFIER", "show_default": True}


class CommandError(click.ClickException):
    """A sentence for the person at the terminal; exit code 1."""


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="outrider")
def main() -> None:
    """Decide in the cloud: serve a target model to devices that draft."""


main.add_command(keys_commands)


class Positions(click.ParamType[int]):
    """A number from 1 on; `auto` is 0."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Refuses what is neither."""
        if value in ("auto", 0):
            return 0
        try:
            positions = int(value)
        except ValueError:
            positions = 0
        if positions < 1:
            self.fail(f"{value!r} is neither auto nor a number of positions from 1 on.", param, ctx)
        return positions

    def word(self, value: int) -> object:
        """As a person writes it."""
        return value or "auto"


def _option(*names: str, **settings: Any) -> Any:
    return click.option(*names, show_envvar=True, **settings)


@main.command()
@config_option()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@_option(
    "--model",
    multiple=True,
    metavar="[NAME=]MODEL",
    help="Folder of a transformers causal LM, a hub id such as org/name, a GGUF file, a GGUF of the hub such as "
    "hf:org/name:Q4_K_M, or demo. Of several, devices that name none get the first.",
)
@_option(
    "--engine",
    default="auto",
    type=click.Choice(["auto", "torch", "llama.cpp", "vllm"]),
    help="What evaluates the target; auto: llama.cpp for GGUF, torch for all else. vllm: see docs/vllm.md.",
)
@_option("--served-model-name", default=None, help="Name devices ask for.  [default: last part of --model]")
@_option("--host", default="127.0.0.1", help="Address to listen on.")
@_option("--port", default=50051, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@_option("--ssl-certfile", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="TLS certificate chain.")
@_option("--ssl-keyfile", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="TLS private key.")
@_option(
    "--ssl-ca-certs",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Require client certificates that one of these authorities signed.",
)
@_option(
    "--api-keys",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Serve only whom this file knows; `cloud-verifier keys` makes it.  [default: serve anybody]",
)
@_option("--insecure", is_flag=True, help="Allow plaintext off the loopback interface.")
@_option(
    "--reuse-port", is_flag=True, help="Let a successor listen on the port before this process leaves (SO_REUSEPORT)."
)
@_option(
    "--drain-timeout-s",
    default=30.0,
    type=click.FloatRange(0.0),
    help="After SIGTERM: how long running sessions may go on before devices are sent elsewhere.",
)
@_option("--max-queue", default=64, type=click.IntRange(0), help="Sessions that wait for a place; more are refused.")
@_option("--queue-timeout-s", default=30.0, type=click.FloatRange(0.0), help="Longest wait for a place.")
@_option(
    "--principal-max-sessions",
    default=None,
    type=click.IntRange(0),
    help="Sessions at once of one principal whose key names no limit; so the next three.  [default: any]",
)
@_option("--principal-max-queued", default=None, type=click.IntRange(0), help="Of them waiting.  [default: any]")
@_option("--principal-max-prompt-tokens", default=None, type=click.IntRange(0), help="Of a prompt.  [default: any]")
@_option("--principal-tokens-per-minute", default=None, type=click.IntRange(0), help="Read, written.  [default: any]")
@_option("--device", default="auto", help="cpu, cuda, cuda:1, or auto.")
@_option(
    "--dtype",
    default="auto",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="auto: on a CPU float32, on a GPU bfloat16.",
)
@_option(
    "--gpu-layers",
    default=None,
    type=click.IntRange(-1),
    help="Of a GGUF, as llama.cpp has it; -1 for all.  [default: all, if llama.cpp was built for a GPU]",
)
@_option("--tensor-parallel-size", default=None, type=click.IntRange(1), help="With vLLM: GPUs.  [default: 1]")
@_option("--quantization", default=None, help="With vLLM: of the weights, as vLLM names it.  [default: the model's]")
@_option("--vllm-option", multiple=True, metavar="NAME=VALUE", help="With vLLM: an option of `vllm serve`.")
@_option("--strict/--no-strict", default=True, help="Make words independent of batch company, bit by bit.")
@_option("--max-sessions", default=32, type=click.IntRange(1), help="Sessions that are served at one time.")
@_option(
    "--kv-cache-gib",
    default=None,
    type=click.FloatRange(0.0, min_open=True),
    help="Memory for keys and values.  [default: a quarter of the machine's; on a GPU by --gpu-memory-share]",
)
@_option(
    "--gpu-memory-share",
    default=0.9,
    type=click.FloatRange(0.1, 1.0),
    help="Of the GPU's memory, for weights, keys and values and what a step takes.",
)
@_option("--cuda-graphs/--no-cuda-graphs", default=True, help="On a GPU: capture steps once and replay them.")
@_option("--max-model-len", default=None, type=click.IntRange(2), help="Context limit.  [default: the model's]")
@_option(
    "--max-lookahead", default=64, type=click.IntRange(1, MAX_LOOKAHEAD), help="Tokens a draft may reach past the log."
)
@_option(
    "--max-tree-nodes",
    default=256,
    type=click.IntRange(0, MAX_LOOKAHEAD),
    help="Most guesses of a session, all branches together; 0 takes lines only.",
)
@_option(
    "--own-guesses",
    default="none",
    type=click.Choice(["none", "ngram"]),
    help="Guess beside the devices, where steps have room; ngram: what followed the same tokens earlier in the text.",
)
@_option(
    "--draft-model",
    default=None,
    metavar="MODEL",
    help="Guess beside the devices with this small model of the same vocabulary, on this machine; as --model.",
)
@_option(
    "--step-tokens",
    default="auto",
    type=Positions(),
    help="Positions in one forward, prompts aside; auto: as many as take hardly longer than a few, by measurement.",
)
@_option(
    "--step-timeout-s",
    default=300.0,
    type=click.FloatRange(0.0, min_open=True),
    help="A forward that takes longer, by half a second for each of its positions, is taken for one that hangs: the "
    "verifier hands its sessions back and exits.",
)
@_option("--chunk-tokens", default=256, type=click.IntRange(1), help="Prompt positions besides, of all sessions.")
@_option(
    "--objective",
    default="latency",
    type=click.Choice(["latency", "balanced", "capacity"]),
    help="Of sessions that name none: least time per token, fewest forwards per token, or between them by load.",
)
@_option(
    "--max-patience-ms",
    default=None,
    type=click.IntRange(0, 60_000),
    help="Longest wait for drafts that devices may ask for.  [default: any]",
)
@_option(
    "--max-priority",
    default=0,
    type=click.IntRange(0, 1000),
    help="Highest priority that devices may ask for; one more is worth a second of waiting.",
)
@_option(
    "--threads", default=None, type=click.IntRange(1), help="CPU threads of the engine.  [default: torch's choice]"
)
@_option("--step-ms", default=0.0, type=click.FloatRange(0.0), help="Emulate a larger target: least time of a step.")
@_option("--step-ms-per-token", default=0.0, type=click.FloatRange(0.0), help="... and this much per position more.")
@watching_options
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Serve a target model over gRPC.

    MODEL is what --model takes.
    """
    source = click.get_current_context().get_parameter_source("model")
    if models and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("give the models with --model or without it, not both")
    options["model"] = models or options["model"]
    if not options["model"]:
        raise click.UsageError("say what to serve: cloud-verifier serve MODEL, or model: in the file of --config")
    address, named = _checked(options)
    with watching(options) as eyes:
        _serve(options, address, named, eyes)


def _checked(options: dict[str, Any]) -> tuple[Address, dict[str, str]]:
    """Where to listen, and the models by name. Raises CommandError for what is known to be wrong before a model is
    loaded."""
    from cloud_verifier.preflight import missing_packages

    if missing := missing_packages():
        raise CommandError(missing)
    from cloud_verifier.engines.base import ModelError
    from cloud_verifier.engines.vllm.options import parse_extra, refusal
    from cloud_verifier.model_source import ModelSourceError, check_model, engine_of, parse_models
    from cloud_verifier.security.keys import KeyFileError, KeyStore
    from cloud_verifier.serving.address import Address, ServerError

    address = Address(
        options["host"],
        options["port"],
        options["ssl_certfile"],
        options["ssl_keyfile"],
        options["insecure"],
        options["ssl_ca_certs"],
        options["reuse_port"],
    )
    try:
        address.check()
        if options["api_keys"]:
            KeyStore(options["api_keys"])
        models = parse_models(options["model"], options["served_model_name"])
        if why := refusal(options, models=len(models)):
            raise CommandError(why)
        parse_extra(options["vllm_option"])
        draft_model = options["draft_model"]
        if draft_model and options["own_guesses"] != "none":
            raise CommandError("--draft-model and --own-guesses both say how this verifier guesses by itself; give one")
        if draft_model:
            check_model(draft_model, engine_of(draft_model, "auto"))
        for model in models.values():
            check_model(model, engine_of(model, options["engine"]))
    except (KeyFileError, ModelError, ModelSourceError, ServerError) as error:
        raise CommandError(str(error)) from error
    return address, models


def _serve(options: dict[str, Any], address: Address, models: dict[str, str], eyes: ObservabilityHooks) -> None:
    import asyncio
    import logging

    from cloud_verifier.engines.base import ModelError, TargetEngine
    from cloud_verifier.engines.paced import PacedEngine
    from cloud_verifier.engines.self_scheduling import Engine
    from cloud_verifier.guessing import SOURCES
    from cloud_verifier.guessing.model import DraftModel
    from cloud_verifier.model_source import ModelSourceError
    from cloud_verifier.scheduling.scheduler import SchedulerSettings
    from cloud_verifier.scheduling.step_cost import free_positions
    from cloud_verifier.security.authentication import Authentication
    from cloud_verifier.security.keys import KeyFileError, KeyStore
    from cloud_verifier.security.principals import Quota
    from cloud_verifier.server import serve as serve_until_stopped
    from cloud_verifier.serving.address import ServerError
    from cloud_verifier.serving.admission import AdmissionSettings
    from cloud_verifier.serving.open_request import Served
    from cloud_verifier.serving.service import ServiceSettings
    from cloud_verifier.serving.text_codec import TextError
    from cloud_verifier.target import open_target
    from speculation.pace.base import PATIENCE_UNLIMITED_MS, Objective

    quota = Quota(
        options["principal_max_sessions"],
        options["principal_max_queued"],
        options["principal_max_prompt_tokens"],
        options["principal_tokens_per_minute"],
    )

    def load_served(name: str, model: str) -> tuple[Engine, Served]:
        engine, codec = open_target(model, options)
        guessers = SOURCES.get(options["own_guesses"])
        if draft_model := options["draft_model"]:
            drafting, its_codec = open_target(draft_model, options | {"strict": False, "engine": "auto"})
            assert isinstance(drafting, TargetEngine)  # vLLM is nobody's default
            if its_codec.fingerprint != codec.fingerprint:
                raise CommandError(
                    f"--draft-model {draft_model} has another vocabulary than {model}; name a model of the same family"
                )
            guessers = DraftModel(drafting)
        if isinstance(engine, TargetEngine) and (options["step_ms"] or options["step_ms_per_token"]):
            engine = PacedEngine(engine, options["step_ms"], options["step_ms_per_token"])
        limit_ms = options["max_patience_ms"]
        return engine, Served(
            name,
            engine.info,
            codec,
            options["max_lookahead"],
            Objective(options["objective"]),
            PATIENCE_UNLIMITED_MS if limit_ms is None else limit_ms,
            options["max_priority"],
            options["max_tree_nodes"],
            guessers,
        )

    try:
        keys = KeyStore(options["api_keys"], quota) if options["api_keys"] else None
        (engine, served), *others = [load_served(name, model) for name, model in models.items()]
    except (KeyFileError, ModelError, ModelSourceError, TextError) as error:
        raise CommandError(str(error)) from error

    def announce(port: int) -> None:
        click.echo(f"serving {', '.join(models)} on {options['host']}:{port} ({engine.info.strict_report})")
        for _, other in others:
            click.echo(f"{other.name}: {other.engine.strict_report}")

    service = ServiceSettings(admission=AdmissionSettings(options["max_queue"], options["queue_timeout_s"]))
    least = max(options["max_lookahead"] + 1, options["max_sessions"])
    step_tokens = options["step_tokens"] or max(least, min(map(free_positions, [engine, *(e for e, _ in others)])))
    logging.getLogger(__name__).info("a step has room for %d positions, prompts aside", step_tokens)
    steps = SchedulerSettings(step_tokens, options["chunk_tokens"], step_timeout_s=options["step_timeout_s"])
    try:
        asyncio.run(
            serve_until_stopped(
                engine,
                served,
                address,
                announce,
                steps,
                service,
                Authentication(keys, quota),
                options["drain_timeout_s"],
                eyes.watchers,
                eyes.metrics,
                others,
            )
        )
    except ServerError as error:
        raise CommandError(str(error)) from error


main.add_command(config_command(main, "serve"))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine has, what is missing, and how to get it."""
    from cloud_verifier.doctor import examine

    findings = examine()
    if as_json:
        import json

        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in findings:
            click.echo(f"{'ok   ' if finding.ok else 'FAULT'}  {finding.what}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)
