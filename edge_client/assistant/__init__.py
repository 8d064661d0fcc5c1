"""The assistant: an OpenAI-compatible server on the device, `edge-client serve`.

Routes: `/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/health`, `/ready`, `/metrics`, `/version`. What a
request may hold is in `requests.py`, what comes back in `shapes.py`, and docs/assistant.md tells users of both.

Beyond OpenAI's fields
----------------------
Every answer has an object `metrics`, see `shapes.metrics_of`: in a whole body, or in the last chunk of a stream.

A request may have an object `outrider`:

    "pace": "riding" | "streaming"    streaming: no drafts for this answer, for a race side by side. Default riding.
    "ride": true | false              whether chunks tell of the ride. Default false. Only for streams.

With `ride`, the chunks of a stream have an object `outrider` about what is new since the chunk before (`ride.py`):

    "tokens": [{"id": 17, "text": " bus", "writer": "device" | "corrected" | "server"}, ...]
        Whose word it was first. device: it had guessed the token, and the verifier used the guess. corrected: it had
        guessed another one there. server: the verifier wrote it by itself. Texts join to the choice's text, except
        that a stop string or an unfinished character may hold text back for a later token.
    "live": {"at_ms", "rtt_ms", "lookahead_tokens", "acceptance", "tokens_per_s", "in_flight_blocks"}
        As of now. at_ms: since the request. rtt_ms: the latest round trip. lookahead_tokens: how far past the known
        words the latest block reached. acceptance: share of decided guesses that were right, so far.
        in_flight_blocks: sent, and not yet decided. null where nothing is known yet.
    "events": [{"kind": "sent", "at_ms", "position", "tokens"}, {"kind": "committed", "at_ms", "position", "tokens",
                "used", "rtt_ms", "forward_ms", "queue_ms"}, ...]
        The timeline. Positions count from the answer's first token. forward_ms, queue_ms: of the verifier's step.
"""
