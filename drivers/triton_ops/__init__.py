"""The operations as triton kernels, one a file, for GPUs; `ops.py` has them together.

Proved under triton's interpreter (TRITON_INTERPRET=1, set before a module here is imported) and compiled for
Hopper's machine code; none has run on a GPU. Numbers are made fp32 right after a load, unless they are
operands of a product: the interpreter keeps bf16 as plain 16-bit integers and would calculate with those.
"""
