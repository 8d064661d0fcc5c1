"""A thousand faults over sessions that run at once, with real processes and sockets."""

import os

# Before gRPC is imported: its own notes on broken connections, thousands of them here, go to the terminal.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
