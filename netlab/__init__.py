"""The network-latency laboratory. Nothing in the product imports it."""
