"""The assistant: an OpenAI-compatible server on the device, `edge-client serve`.

Routes: `/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/v1/outrider/check`, `/health`, `/ready`, `/status`,
`/metrics`, `/version`. What a request may hold is in `requests.py`, what comes back in `shapes.py`, and
docs/assistant.md tells users of both.

Beyond OpenAI's fields
----------------------
Every answer has an object `metrics`, see `shapes.metrics_of`: in a whole body, or in the last chunk of a stream.

A request may have an object `outrider`:

    "pace": "riding" | "streaming"    streaming: no drafts for this answer, for a race side by side. Default riding.
    "ride": true | false              whether chunks tell of the ride. Default false. Only for streams.
    "offline": "never" | "auto"       whether the device may finish the answer alone when the verifier cannot be
        reached. Default: auto if the server was started with --offline-answers auto. A model's name that ends in
        `:offline` means auto, too. With --offline-answers never, auto is refused.

With `ride`, the chunks of a stream have an object `outrider` about what is new since the chunk before (`ride.py`):

    "link": "connecting" | "live" | "waiting" | "offline"
        waiting: nothing is heard of the verifier, what has come stays, and the answer goes on by itself. offline: the
        device has gone on alone, to the end. A chunk may bring no words, but news of the link. (Streams without `ride`
        get a comment instead, `: link: waiting`.)
    "tokens": [{"id": 17, "text": " bus", "writer": "device" | "branch" | "own" | "corrected" | "server" | "offline"},
               ...]
        Whose word it was first. device: it had guessed the token, and the verifier used the guess. branch: the same,
        with a guess that stood beside a likelier one. own: the verifier had guessed it by itself. corrected: the device
        had guessed other ones there. server: the verifier wrote it without a guess. offline: the device, and no
        verifier has seen it. Texts join to the choice's text, but for what the answer's end sets free.
    "live": {"at_ms", "rtt_ms", "lookahead_tokens", "acceptance", "tokens_per_s", "in_flight_blocks"}
        As of now. at_ms: since the request. rtt_ms: the latest round trip. lookahead_tokens: how far past the known
        words the latest block reached. acceptance: accepted / decided guesses so far.
        in_flight_blocks: sent, and not yet decided. null where nothing is known yet.
    "events": [{"kind": "sent", "at_ms", "position", "tokens"}, {"kind": "committed", "at_ms", "position", "tokens",
                "used", "rtt_ms", "forward_ms", "queue_ms"}, ...]
        The timeline. Positions count from the answer's first token. forward_ms, queue_ms: of the verifier's step.
        It is kept where guesses are drawn, which no word waits for: an answer's last commits may be missing.

What the device wrote alone is marked whether or not `ride` was asked for: the model's name in body and chunks ends in
`:offline`; a header `X-Outrider-Offline: true` comes with a whole answer, and with a stream that is offline from its
first word on; a whole choice or the last chunk of one has `"outrider": {"offline": {"text", "model"}}`, the end of its
text and who wrote it. `POST /v1/outrider/check` with `{"id": ..., "choice": 0}` has the verifier check such an answer,
one of the latest 32: see `offline.told`.
"""
