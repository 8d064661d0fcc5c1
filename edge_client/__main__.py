"""`python -m edge_client` is `edge-client`."""

from edge_client.cli import main

main(prog_name="edge-client")
