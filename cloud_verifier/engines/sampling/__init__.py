"""The choice of tokens on torch tensors, the same for every engine: `sampler`, under the shared `noise`."""
