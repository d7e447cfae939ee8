"""Triton kernels, one operation a file, each beside its reference in plain torch.

Proved under triton's interpreter (TRITON_INTERPRET=1, set before a module here is imported); no driver uses
them yet, and none has run on a GPU. Numbers are made fp32 right after every load: the interpreter keeps
bf16 as plain 16-bit integers and would calculate with those.
"""
