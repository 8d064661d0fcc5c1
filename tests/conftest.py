"""Set-up of all tests."""

import os

# Before torch is imported: OpenMP threads that spin starve the other processes of a test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
