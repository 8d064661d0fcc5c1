"""An assistant app on Outrider's own API: python examples/assistant.py --drafter drafter.gguf

It remembers the conversation, shows words as they come, underlines those that this device had guessed before the
verifier said them, and says what that was worth. Ctrl-C ends an answer; an empty line ends the program.
"""

import argparse
import contextlib
import sys

from outrider import EdgeClient, SamplingParams, SessionError

UNDERLINED, PLAIN = ("\033[4m", "\033[0m") if sys.stdout.isatty() else ("", "")


def answer(client: EdgeClient, messages: list[dict[str, str]], params: SamplingParams, seed: int | None) -> str:
    """Show an answer as it grows; return its text."""
    text = ""
    with (
        contextlib.closing(client.stream(messages, params, seed=seed)) as chunks,
        contextlib.suppress(KeyboardInterrupt),
    ):
        for chunk in chunks:
            for piece, drafted in zip(chunk.texts, chunk.drafted, strict=True):
                print(f"{UNDERLINED}{piece}{PLAIN}" if drafted else piece, end="", flush=True)
            text += chunk.text
            if chunk.output is not None:
                print(chunk.text)
                metrics = chunk.output.metrics
                guessed = sum(chunk.output.drafted) / max(1, len(chunk.output.drafted))
                print(f"[{guessed:.0%} guessed here, {metrics.ms_per_token:.1f} ms per token]", file=sys.stderr)
    return text


def main() -> None:
    """Read questions until there are none."""
    parser = argparse.ArgumentParser(description="Talk to a verifier.")
    parser.add_argument("--verifier", default="127.0.0.1:50051", help="HOST:PORT")
    parser.add_argument("--drafter", default="none", help="a GGUF or ONNX file, ngram, or none")
    parser.add_argument("--seed", type=int, default=None, help="same seed, same words")
    options = parser.parse_args()
    params = SamplingParams(temperature=0.8, max_tokens=256)
    messages: list[dict[str, str]] = []
    with EdgeClient(options.verifier, options.drafter) as client:
        for notice in client.notices:
            print(notice, file=sys.stderr)
        while question := sys.stdin.readline().strip():
            messages.append({"role": "user", "content": question})
            try:
                said = answer(client, messages, params, options.seed)
            except SessionError as error:
                sys.exit(str(error))
            messages.append({"role": "assistant", "content": said})


if __name__ == "__main__":
    main()
