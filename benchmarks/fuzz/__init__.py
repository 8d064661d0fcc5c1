"""A million messages that no client of ours would send, against the real service with a mock target."""

import os

# Before gRPC is imported: its own notes on broken connections, thousands of them here, go to the terminal.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
