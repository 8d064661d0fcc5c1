"""The same app through OpenAI's package: edge-client serve, then python examples/with_openai.py

Nothing here is Outrider's but the address, and the figures at the end, which other servers do not send.
"""

import argparse
import sys

from openai import APIError, OpenAI
from openai.types.chat import ChatCompletionMessageParam


def answer(client: OpenAI, messages: list[ChatCompletionMessageParam], seed: int | None) -> str:
    """Show an answer as it grows; return its text."""
    text = ""
    stream = client.chat.completions.create(
        model="default",
        messages=messages,
        temperature=0.8,
        max_tokens=256,
        seed=seed,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            print(choice.delta.content or "", end="", flush=True)
        if metrics := getattr(chunk, "metrics", None):
            print(f"\n[{metrics['accepted_tokens']} tokens guessed here, ", end="", file=sys.stderr)
            print(f"{metrics['tokens_per_s']} tokens per second]", file=sys.stderr)
    print()
    return text


def main() -> None:
    """Read questions until there are none."""
    parser = argparse.ArgumentParser(description="Talk to edge-client serve.")
    parser.add_argument("--base-url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--api-key", default="none", help="what edge-client serve was started with")
    parser.add_argument("--seed", type=int, default=None, help="same seed, same words")
    options = parser.parse_args()
    client = OpenAI(base_url=options.base_url, api_key=options.api_key)
    messages: list[ChatCompletionMessageParam] = []
    while question := sys.stdin.readline().strip():
        messages.append({"role": "user", "content": question})
        try:
            said = answer(client, messages, options.seed)
        except APIError as error:
            sys.exit(error.message)
        messages.append({"role": "assistant", "content": said})


if __name__ == "__main__":
    main()
