from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AcceptanceRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCEPTANCE_RULE_UNSPECIFIED: _ClassVar[AcceptanceRule]
    ACCEPTANCE_RULE_SHARED_NOISE: _ClassVar[AcceptanceRule]

class Objective(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECTIVE_UNSPECIFIED: _ClassVar[Objective]
    OBJECTIVE_LATENCY: _ClassVar[Objective]
    OBJECTIVE_BALANCED: _ClassVar[Objective]
    OBJECTIVE_CAPACITY: _ClassVar[Objective]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
ACCEPTANCE_RULE_UNSPECIFIED: AcceptanceRule
ACCEPTANCE_RULE_SHARED_NOISE: AcceptanceRule
OBJECTIVE_UNSPECIFIED: Objective
OBJECTIVE_LATENCY: Objective
OBJECTIVE_BALANCED: Objective
OBJECTIVE_CAPACITY: Objective
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CANCELLED: FinishReason

class GetModelInfoRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelInfoResponse(_message.Message):
    __slots__ = ("model", "protocol_version", "noise_version", "vocabulary_fingerprint", "vocabulary_size", "eos_ids", "context_limit", "max_lookahead", "target_fingerprint", "strict", "strict_report")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NOISE_VERSION_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    EOS_IDS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MAX_LOOKAHEAD_FIELD_NUMBER: _ClassVar[int]
    TARGET_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    STRICT_REPORT_FIELD_NUMBER: _ClassVar[int]
    model: str
    protocol_version: int
    noise_version: int
    vocabulary_fingerprint: str
    vocabulary_size: int
    eos_ids: _containers.RepeatedScalarFieldContainer[int]
    context_limit: int
    max_lookahead: int
    target_fingerprint: str
    strict: bool
    strict_report: str
    def __init__(self, model: _Optional[str] = ..., protocol_version: _Optional[int] = ..., noise_version: _Optional[int] = ..., vocabulary_fingerprint: _Optional[str] = ..., vocabulary_size: _Optional[int] = ..., eos_ids: _Optional[_Iterable[int]] = ..., context_limit: _Optional[int] = ..., max_lookahead: _Optional[int] = ..., target_fingerprint: _Optional[str] = ..., strict: _Optional[bool] = ..., strict_report: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[GetModelInfoResponse]
    def __init__(self, models: _Optional[_Iterable[_Union[GetModelInfoResponse, _Mapping]]] = ...) -> None: ...

class GetVocabularyRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetVocabularyResponse(_message.Message):
    __slots__ = ("start", "tokens", "special_ids", "added_ids")
    START_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_IDS_FIELD_NUMBER: _ClassVar[int]
    ADDED_IDS_FIELD_NUMBER: _ClassVar[int]
    start: int
    tokens: _containers.RepeatedScalarFieldContainer[bytes]
    special_ids: _containers.RepeatedScalarFieldContainer[int]
    added_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, start: _Optional[int] = ..., tokens: _Optional[_Iterable[bytes]] = ..., special_ids: _Optional[_Iterable[int]] = ..., added_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("open", "open_piece", "draft", "ping", "cancel")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    OPEN_PIECE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    open: Open
    open_piece: OpenPiece
    draft: Draft
    ping: Ping
    cancel: Cancel
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., open_piece: _Optional[_Union[OpenPiece, _Mapping]] = ..., draft: _Optional[_Union[Draft, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("protocol_version", "model", "prompt_ids", "chat", "text", "sampling", "seed", "acceptance_rule", "objective", "patience_ms", "drafter_vocabulary_fingerprint", "continue_from", "resume", "want_prompt_ids", "want_text", "priority", "incremental", "prompt_fingerprint")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_RULE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_VOCABULARY_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FROM_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    WANT_PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    WANT_TEXT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    INCREMENTAL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    model: str
    prompt_ids: TokenIds
    chat: ChatMessages
    text: str
    sampling: SamplingParams
    seed: int
    acceptance_rule: AcceptanceRule
    objective: Objective
    patience_ms: int
    drafter_vocabulary_fingerprint: str
    continue_from: _containers.RepeatedScalarFieldContainer[int]
    resume: Resume
    want_prompt_ids: bool
    want_text: bool
    priority: int
    incremental: bool
    prompt_fingerprint: int
    def __init__(self, protocol_version: _Optional[int] = ..., model: _Optional[str] = ..., prompt_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[ChatMessages, _Mapping]] = ..., text: _Optional[str] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., seed: _Optional[int] = ..., acceptance_rule: _Optional[_Union[AcceptanceRule, str]] = ..., objective: _Optional[_Union[Objective, str]] = ..., patience_ms: _Optional[int] = ..., drafter_vocabulary_fingerprint: _Optional[str] = ..., continue_from: _Optional[_Iterable[int]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., want_prompt_ids: _Optional[bool] = ..., want_text: _Optional[bool] = ..., priority: _Optional[int] = ..., incremental: _Optional[bool] = ..., prompt_fingerprint: _Optional[int] = ...) -> None: ...

class OpenPiece(_message.Message):
    __slots__ = ("data", "last")
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    last: bool
    def __init__(self, data: _Optional[bytes] = ..., last: _Optional[bool] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ChatMessages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: _containers.RepeatedCompositeFieldContainer[ContentPart]
    def __init__(self, role: _Optional[str] = ..., content: _Optional[_Iterable[_Union[ContentPart, _Mapping]]] = ...) -> None: ...

class ContentPart(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "max_tokens", "stop", "stop_ids", "ignore_eos", "logprobs")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., logprobs: _Optional[int] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("session_id", "known_length", "known_prompt_ids")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KNOWN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    KNOWN_PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    known_length: int
    known_prompt_ids: int
    def __init__(self, session_id: _Optional[str] = ..., known_length: _Optional[int] = ..., known_prompt_ids: _Optional[int] = ...) -> None: ...

class Draft(_message.Message):
    __slots__ = ("start", "tokens", "known_length", "sent_at_us", "confidence", "parents", "patience_ms", "objective")
    START_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_US_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_MS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    start: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    known_length: int
    sent_at_us: int
    confidence: bytes
    parents: _containers.RepeatedScalarFieldContainer[int]
    patience_ms: int
    objective: Objective
    def __init__(self, start: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., known_length: _Optional[int] = ..., sent_at_us: _Optional[int] = ..., confidence: _Optional[bytes] = ..., parents: _Optional[_Iterable[int]] = ..., patience_ms: _Optional[int] = ..., objective: _Optional[_Union[Objective, str]] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("sent_at_us",)
    SENT_AT_US_FIELD_NUMBER: _ClassVar[int]
    sent_at_us: int
    def __init__(self, sent_at_us: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("opened", "commit", "pong", "finished", "open_progress", "prompt_ids")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    OPEN_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    commit: Commit
    pong: Pong
    finished: Finished
    open_progress: OpenProgress
    prompt_ids: PromptIds
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., open_progress: _Optional[_Union[OpenProgress, _Mapping]] = ..., prompt_ids: _Optional[_Union[PromptIds, _Mapping]] = ...) -> None: ...

class OpenProgress(_message.Message):
    __slots__ = ("received_bytes", "queue_position")
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    received_bytes: int
    queue_position: int
    def __init__(self, received_bytes: _Optional[int] = ..., queue_position: _Optional[int] = ...) -> None: ...

class PromptIds(_message.Message):
    __slots__ = ("start", "ids")
    START_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    start: int
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, start: _Optional[int] = ..., ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("session_id", "lease_seconds", "model_info", "prompt_length", "prompt_ids", "resumed_at", "max_lookahead", "vocabulary_matches", "objective", "max_patience_ms", "prompt_fingerprint", "max_tree_nodes")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_INFO_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_AT_FIELD_NUMBER: _ClassVar[int]
    MAX_LOOKAHEAD_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_MATCHES_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    MAX_PATIENCE_MS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MAX_TREE_NODES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    lease_seconds: int
    model_info: GetModelInfoResponse
    prompt_length: int
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    resumed_at: int
    max_lookahead: int
    vocabulary_matches: bool
    objective: Objective
    max_patience_ms: int
    prompt_fingerprint: int
    max_tree_nodes: int
    def __init__(self, session_id: _Optional[str] = ..., lease_seconds: _Optional[int] = ..., model_info: _Optional[_Union[GetModelInfoResponse, _Mapping]] = ..., prompt_length: _Optional[int] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., resumed_at: _Optional[int] = ..., max_lookahead: _Optional[int] = ..., vocabulary_matches: _Optional[bool] = ..., objective: _Optional[_Union[Objective, str]] = ..., max_patience_ms: _Optional[int] = ..., prompt_fingerprint: _Optional[int] = ..., max_tree_nodes: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("start", "tokens", "drafted_mask", "text", "logprobs", "echo_sent_at_us", "hold_us", "queue_us", "forward_us", "batch_size", "draft_budget", "text_lengths", "own_mask")
    START_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_MASK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ECHO_SENT_AT_US_FIELD_NUMBER: _ClassVar[int]
    HOLD_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    FORWARD_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_BUDGET_FIELD_NUMBER: _ClassVar[int]
    TEXT_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    OWN_MASK_FIELD_NUMBER: _ClassVar[int]
    start: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    drafted_mask: int
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    echo_sent_at_us: int
    hold_us: int
    queue_us: int
    forward_us: int
    batch_size: int
    draft_budget: int
    text_lengths: _containers.RepeatedScalarFieldContainer[int]
    own_mask: int
    def __init__(self, start: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., drafted_mask: _Optional[int] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., echo_sent_at_us: _Optional[int] = ..., hold_us: _Optional[int] = ..., queue_us: _Optional[int] = ..., forward_us: _Optional[int] = ..., batch_size: _Optional[int] = ..., draft_budget: _Optional[int] = ..., text_lengths: _Optional[_Iterable[int]] = ..., own_mask: _Optional[int] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "top_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("echo_sent_at_us",)
    ECHO_SENT_AT_US_FIELD_NUMBER: _ClassVar[int]
    echo_sent_at_us: int
    def __init__(self, echo_sent_at_us: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "text", "usage", "statistics", "length")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    text: str
    usage: Usage
    statistics: SessionStatistics
    length: int
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., text: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., statistics: _Optional[_Union[SessionStatistics, _Mapping]] = ..., length: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ...) -> None: ...

class SessionStatistics(_message.Message):
    __slots__ = ("drafted_tokens", "verified_tokens", "accepted_tokens", "dropped_tokens", "target_forwards", "fills", "forward_us", "resumes", "trimmed_tokens", "waited_us", "slowed_messages", "own_verified_tokens", "own_accepted_tokens")
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FORWARDS_FIELD_NUMBER: _ClassVar[int]
    FILLS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_US_FIELD_NUMBER: _ClassVar[int]
    RESUMES_FIELD_NUMBER: _ClassVar[int]
    TRIMMED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WAITED_US_FIELD_NUMBER: _ClassVar[int]
    SLOWED_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    OWN_VERIFIED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OWN_ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    drafted_tokens: int
    verified_tokens: int
    accepted_tokens: int
    dropped_tokens: int
    target_forwards: int
    fills: int
    forward_us: int
    resumes: int
    trimmed_tokens: int
    waited_us: int
    slowed_messages: int
    own_verified_tokens: int
    own_accepted_tokens: int
    def __init__(self, drafted_tokens: _Optional[int] = ..., verified_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., dropped_tokens: _Optional[int] = ..., target_forwards: _Optional[int] = ..., fills: _Optional[int] = ..., forward_us: _Optional[int] = ..., resumes: _Optional[int] = ..., trimmed_tokens: _Optional[int] = ..., waited_us: _Optional[int] = ..., slowed_messages: _Optional[int] = ..., own_verified_tokens: _Optional[int] = ..., own_accepted_tokens: _Optional[int] = ...) -> None: ...
