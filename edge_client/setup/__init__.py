"""Set-up for people: `edge-client setup`."""
