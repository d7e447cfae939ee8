"""Paging with the CUDA driver's virtual memory calls, found at run time: no CUDA is needed to build."""
