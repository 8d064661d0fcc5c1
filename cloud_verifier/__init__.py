"""The server side of Outrider: target engines, the scheduler and the gRPC service."""

import os

# gRPC reads this once, when it starts. Its event engine hands every message that arrives through a pool of threads,
# which is a quarter of what many small messages cost gRPC in all (grpc/grpc#43447 finds the like). Who sets the
# variable knows better.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
