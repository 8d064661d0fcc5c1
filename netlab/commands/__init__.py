"""The commands of `netlab`, one module each; imports inside the commands keep `netlab --help` fast."""
