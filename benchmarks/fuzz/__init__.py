"""A million messages that no client of ours would send, against the real service with a mock target."""
