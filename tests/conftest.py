"""Set-up of all tests."""

import os

from hypothesis import HealthCheck, settings

# Before torch is imported: OpenMP threads that spin starve the other processes of a test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before Triton is, which transformers does where it is installed: kernels for GPUs run on a CPU, in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Models of tests are made anew for every run: each would be tried in a process of its own before it is loaded.
os.environ.setdefault("OUTRIDER_CHILD_PROCESS", "1")

# Runs are repeatable, and no test knows how fast a machine is. For new examples: --hypothesis-profile=explore.
for name, repeatable in (("outrider", True), ("explore", False)):
    settings.register_profile(name, deadline=None, derandomize=repeatable, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("outrider")
