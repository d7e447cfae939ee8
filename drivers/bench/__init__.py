"""Measurements of the CPU driver's kernels, run in a process of their own."""
