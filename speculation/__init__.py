"""What device and verifier must agree on: noise, sampling, acceptance, log and line, vocabulary, pace.

Pure: numpy only, no torch, no grpc, no files, no clock.
"""
