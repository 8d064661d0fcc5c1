"""The options that the commands of `edge-client` share, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import platformdirs

from edge_client.drafters.settings import DeviceSettings, FlashAttention, KvType, Weights
from edge_client.types import OfflineAnswers
from outrider_cli.config import config_option
from outrider_cli.option_groups import options_of
from outrider_models.memory_check import parse_bytes
from speculation.pace.base import Objective

if TYPE_CHECKING:
    from edge_client.client import EdgeClient
    from edge_client.link.security import Security
    from edge_client.riding.offline import Ask
    from speculation.sampling import SamplingParams


class CommandError(click.ClickException):
    """A sentence for the person at the terminal; exit code 1."""


class Size(click.ParamType):  # type: ignore[type-arg]  # older click knows no argument
    """Bytes, written 800MB or 1.5GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Of what was typed."""
        try:
            return value if isinstance(value, int) else parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def option(*names: str, **settings: Any) -> Any:
    """An option that --help shows with its environment variable."""
    return click.option(*names, show_envvar=True, **settings)


connection_options = options_of(
    "Verifier and drafter",
    config_option(platformdirs.user_config_path("outrider") / "edge-client.yaml"),
    option(
        "--verifier",
        default="127.0.0.1:50051",
        help="HOST:PORT of the verifier; of several with commas between, another is tried when one is away.",
    ),
    option(
        "--drafter",
        default="none",
        help="A GGUF or ONNX file or folder, hf:ORG/REPO[@REVISION][:QUANTIZATION], demo, ngram, history, ngram+FILE, "
        "or none.",
    ),
    option("--model", default="", help="Model to ask for.  [default: the verifier's]"),
    option("--threads", default=1, type=click.IntRange(1), help="CPU threads of the drafter."),
    option("--tls", is_flag=True, help="Use TLS with the system's certificates."),
    option(
        "--ssl-ca-certs", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Use TLS; trust these."
    ),
    option(
        "--ssl-client-certfile",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Certificate to show to a verifier that asks for one.",
    ),
    option(
        "--ssl-client-keyfile",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Its private key.",
    ),
    option(
        "--verifier-api-key",
        envvar="OUTRIDER_VERIFIER_API_KEY",
        default="",
        show_default=False,
        help="Key that the verifier knows this device by; other users of this machine can read a command line.",
    ),
    option(
        "--verifier-api-key-file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="File with that key and nothing else.",
    ),
    option("--insecure", is_flag=True, help="Allow plaintext to another machine."),
)
device_options = options_of(
    "Device",
    option(
        "--context-tokens",
        default=None,
        type=click.IntRange(1),
        help="Longest sequence.  [default: what fits, up to 4096]",
    ),
    option("--memory-limit", default=None, type=Size(), help="Most that the drafter may use.  [default: what is free]"),
    option("--offline", is_flag=True, help="Take models of the hub from its cache only."),
    option(
        "--provider",
        default="cpu",
        metavar="NAME[:KEY=VALUE,...]",
        help="ONNX Runtime's: cpu, cuda, tensorrt, qnn, coreml, directml, openvino, xnnpack; auto measures.",
    ),
    option("--gpu-layers", default=0, type=click.IntRange(-1), help="llama.cpp's layers on a GPU; -1 for all."),
    option(
        "--weights",
        default=Weights.MAPPED.value,
        type=click.Choice([weights.value for weights in Weights]),
        help="llama.cpp's: mapped from the file, locked in memory, or read at once.",
    ),
    option(
        "--kv-type",
        default=KvType.F16.value,
        type=click.Choice([kind.value for kind in KvType]),
        help="llama.cpp's key-value cache.",
    ),
    option(
        "--flash-attention",
        default=FlashAttention.AUTO.value,
        type=click.Choice([choice.value for choice in FlashAttention]),
        help="llama.cpp's.",
    ),
)
pace_options = options_of(
    "Pace",
    option("--pace", default="adaptive", help="How far to ride ahead, and when; unknown names list all."),
    option(
        "--objective",
        default="latency",
        type=click.Choice([objective.value for objective in Objective]),
        help="Least time, least work for the verifier, or between the two.",
    ),
    option(
        "--priority",
        default=0,
        type=click.IntRange(-1000, 1000),
        help="At a verifier that has not room for everybody, up to what it allows; higher goes first.",
    ),
    option(
        "--max-draft-duty",
        default=1.0,
        type=click.FloatRange(0.0, 1.0, min_open=True),
        help="Most of the time that may go into drafting; less saves battery.",
    ),
)
offline_options = options_of(
    "Without network",
    option(
        "--offline-answers",
        default=OfflineAnswers.NEVER.value,
        type=click.Choice([answers.value for answers in OfflineAnswers]),
        help="Whether the drafter may answer alone when the verifier cannot be reached.",
    ),
)
sampling_options = options_of(
    "Answer",
    option("--temperature", default=0.8, help="0 takes the likeliest token."),
    option("--top-k", default=0, help="Keep this many of the likeliest tokens; 0 keeps all."),
    option("--top-p", default=1.0, help="Keep the likeliest tokens up to this share."),
    option("--min-p", default=0.0, help="Drop tokens below this share of the likeliest."),
    option("--repetition-penalty", default=1.0, help="Above 1: makes tokens of prompt and answer less likely."),
    option("--presence-penalty", default=0.0, help="From -2 to 2: lowers tokens that the answer has."),
    option("--frequency-penalty", default=0.0, help="From -2 to 2: lowers them once for each time."),
    option("--max-tokens", default=256, type=click.IntRange(1), help="Most tokens to answer."),
    option("--stop", multiple=True, help="End before this text; may be given several times."),
    option("--seed", default=None, type=click.IntRange(0, 2**64 - 1), help="Same seed, same words.  [default: random]"),
)


def take_device(options: dict[str, Any]) -> DeviceSettings:
    """The settings of `device_options`, which are taken out of the command's."""
    return DeviceSettings(
        context_tokens=options.pop("context_tokens"),
        memory_limit_bytes=options.pop("memory_limit"),
        offline=options.pop("offline"),
        gpu_layers=options.pop("gpu_layers"),
        weights=Weights(options.pop("weights")),
        kv_type=KvType(options.pop("kv_type")),
        flash_attention=FlashAttention(options.pop("flash_attention")),
        provider=options.pop("provider"),
    )


def take_security(options: dict[str, Any]) -> Security:
    """What `connection_options` say of certificates and keys, which is taken out of the command's.

    Raises CommandError.
    """
    from edge_client.link.security import Security

    api_key, file = options.pop("verifier_api_key"), options.pop("verifier_api_key_file")
    if api_key and file:
        raise CommandError("there are two API keys, one in --verifier-api-key-file; give one")
    if file:
        try:
            api_key = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"cannot read the API key: {error}") from error
    return Security(
        tls=options.pop("tls"),
        ca_certificate=options.pop("ssl_ca_certs"),
        certificate=options.pop("ssl_client_certfile"),
        key=options.pop("ssl_client_keyfile"),
        api_key=api_key,
        insecure=options.pop("insecure"),
    )


def make_client(options: dict[str, Any], ask_offline: Ask | None = None) -> EdgeClient:
    """A client by `connection_options`, `device_options`, `pace_options` and, where a command has them,
    `offline_options`; its notices go to standard error.

    Raises CommandError.
    """
    from edge_client.client import EdgeClient

    try:
        client = EdgeClient(
            options["verifier"],
            options["drafter"],
            model=options["model"],
            pace=options["pace"],
            objective=Objective(options["objective"]),
            priority=options["priority"],
            threads=options["threads"],
            device=take_device(options),
            max_draft_duty=options["max_draft_duty"],
            security=take_security(options),
            offline_answers=options.get("offline_answers", OfflineAnswers.NEVER),
            ask_offline=ask_offline,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
    for notice in client.notices:
        click.secho(notice, fg="yellow", err=True)
    return client


def make_params(options: dict[str, Any]) -> SamplingParams:
    """What `sampling_options` say, but for the seed. Raises CommandError."""
    from speculation.sampling import SamplingError, SamplingParams

    try:
        return SamplingParams(
            temperature=options["temperature"],
            top_k=options["top_k"],
            top_p=options["top_p"],
            min_p=options["min_p"],
            repetition_penalty=options["repetition_penalty"],
            presence_penalty=options["presence_penalty"],
            frequency_penalty=options["frequency_penalty"],
            max_tokens=options["max_tokens"],
            stop=options["stop"],
        )
    except SamplingError as error:
        raise CommandError(str(error)) from error
