"""The chat in the terminal: `edge-client chat`."""
