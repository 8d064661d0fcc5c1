"""A thousand faults over sessions that run at once, with real processes and sockets."""
