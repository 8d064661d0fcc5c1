"""Kernels for GPUs, in Triton, which every CUDA build of torch brings.

torch alone runs a decoder layer as some forty small kernels, and at a few rows each of them takes longer to start than
to run. Here a layer is four matrix products and six kernels. Each is held against plain torch in tests, by Triton's
interpreter on a CPU, and tried at start-up on the device that is to run it.

No kernel's sums depend on how many rows, sequences or pages a step has: they run over blocks of one size, in one order.
"""
