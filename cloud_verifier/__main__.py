"""`python -m cloud_verifier` is `cloud-verifier`."""

from cloud_verifier.cli import main

main(prog_name="cloud-verifier")
