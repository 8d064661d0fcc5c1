"""The command `edge-client chat`."""

from __future__ import annotations

import sys
from typing import Any

import click

from edge_client.settings.options import (
    CommandError,
    connection_options,
    device_options,
    make_client,
    make_params,
    offline_options,
    option,
    pace_options,
    sampling_options,
)
from outrider_cli.extras import install
from outrider_cli.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@option("--system", default="", help="System message.")
@connection_options
@device_options
@pace_options
@offline_options
@sampling_options
def chat(system: str, **options: Any) -> None:
    """Talk in the terminal. Words are coloured by who wrote them; /help lists what can be said beside questions.

    Lines from a pipe are questions, one by one.
    """
    from rich.console import Console

    from edge_client.chat.app import Chat
    from edge_client.chat.conversation import Conversation
    from edge_client.chat.rendering import Renderer, figures
    from edge_client.terminal import ask_at_terminal, read_line
    from edge_client.types import OfflineAnswers

    painter = Renderer(Console(highlight=False), Console(stderr=True, highlight=False))
    talking = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        from edge_client.chat.line_editor import editor
    except ModuleNotFoundError as error:
        if talking:
            raise CommandError(f"{error}; chatting needs more: {install('chat')}") from error
    conversation = Conversation(make_params(options), options["seed"], options["model"], system)
    client = make_client(options, ask_at_terminal)

    def toolbar() -> str:
        return figures(talk.metrics) if talk.metrics is not None else f"verifier {options['verifier']}"

    talk = Chat(client, conversation, painter, OfflineAnswers(options["offline_answers"]))
    try:
        if talking:
            painter.say("/help says what can be said; Ctrl-D ends")
        talk.run(editor(talk.names, toolbar, painter.say) if talking else read_line)
    finally:
        client.close()
