"""Set-up of all tests."""

import os

# Before torch is imported: OpenMP threads that spin starve the other processes of a test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before Triton is, which transformers does where it is installed: kernels for GPUs run on a CPU, in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Models of tests are made anew for every run: each would be tried in a process of its own before it is loaded.
os.environ.setdefault("OUTRIDER_CHILD_PROCESS", "1")
