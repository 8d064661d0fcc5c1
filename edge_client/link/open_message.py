"""The message that opens a session."""

from __future__ import annotations

from outrider.v1 import verifier_pb2 as pb

from edge_client.types import Prompt
from speculation.pace.base import Objective, Pace
from speculation.sampling import SamplingParams

PROTOCOL_VERSION = 1
SMALL_OPEN_BYTES = 1024
OBJECTIVES = {
    Objective.LATENCY: pb.OBJECTIVE_LATENCY,
    Objective.BALANCED: pb.OBJECTIVE_BALANCED,
    Objective.CAPACITY: pb.OBJECTIVE_CAPACITY,
}


def open_message(
    prompt: Prompt,
    params: SamplingParams,
    seed: int,
    pace: Pace,
    *,
    model: str = "",
    priority: int = 0,
    vocabulary: str | None = None,
) -> pb.Open:
    """vocabulary: fingerprint of the drafter's; None without a drafter. Raises ValueError for an unusable prompt."""
    request = pb.Open(
        protocol_version=PROTOCOL_VERSION,
        model=model,
        sampling=sampling_message(params),
        seed=seed,
        objective=OBJECTIVES[pace.objective],
        priority=priority,
        patience_ms=pace.patience_ms,
        drafter_vocabulary_fingerprint=vocabulary or "",
        want_prompt_ids=vocabulary is not None,
        want_text=True,
        incremental=True,
    )
    if isinstance(prompt, str):
        request.text = prompt
    elif all(isinstance(item, int) for item in prompt):
        request.prompt_ids.ids.extend(prompt)  # type: ignore[arg-type]
    else:
        for message in prompt:
            if not hasattr(message, "keys") or set(message) != {"role", "content"}:  # type: ignore[arg-type]
                raise ValueError(f"a message needs exactly role and content, not {message!r}")
            part = pb.ContentPart(text=message["content"])  # type: ignore[index]
            request.chat.messages.add(role=message["role"], content=[part])  # type: ignore[index]
    # Without a drafter they are for opening again, whatever a template then makes of it: worth few bytes.
    request.want_prompt_ids |= not request.HasField("prompt_ids") and request.ByteSize() <= SMALL_OPEN_BYTES
    return request


def sampling_message(params: SamplingParams) -> pb.SamplingParams:
    """Sampling parameters as the contract's message."""
    return pb.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=params.logit_bias,
        max_tokens=params.max_tokens,
        stop=params.stop,
        stop_ids=params.stop_ids,
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
    )
