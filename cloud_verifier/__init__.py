"""The server side of Outrider: target engines, the scheduler and the gRPC service."""
