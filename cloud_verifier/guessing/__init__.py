"""Guesses of the verifier's own, beside those of devices: one tree, one rule, the same words."""

from cloud_verifier.guessing.base import GuesserSource
from cloud_verifier.guessing.ngram import NgramGuesser

SOURCES: dict[str, GuesserSource] = {"ngram": NgramGuesser}  # by the name that --own-guesses has for them
