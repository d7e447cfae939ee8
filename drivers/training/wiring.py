"""Start with induction heads: recall is wired before the first step, and training refines it.

A small model trained for an hour spends most of it on a plateau before its recall heads form. The
circuit is known, so the first weights already hold it; everything else starts at random.

    layer 0   heads 0 and 1 look one and two tokens back (their queries and keys see only a constant
              coordinate of the embedding, so rotary phases alone decide) and write what they find
              to two private subspaces, `back1` and `back2`
    layer 1   heads 0 and 1 match the present token with the others' `back1`: they land just after an
              earlier occurrence. Heads 2 and 3 match `back1` with `back2`: the same, one token more
              of context. All four copy the token they land on to the output.

Matching uses the slow rotary dimensions, so it does not fade with distance.

Source: Olsson et al. 2022, "In-context learning and induction heads"; Trockman and Kolter 2023,
"Mimetic initialization of self-attention layers".
"""

from __future__ import annotations

import torch
from torch import Tensor

from drivers.training.model import Llama

CONSTANT = 0.5  # the embedding coordinate that all tokens share
PHASE = 1.2  # strength of the look-back heads
WRITE = 0.1  # what look-back adds to the residual, against the embedding's norm of 1
MATCH = 2.4  # sharpness of matching
COPY = 0.3  # what copying adds to the residual
FINAL_GAIN = 0.3
FAST, SLOW = (
    1 / 4,
    3 / 8,
)  # look-back uses the rotary frequencies before FAST of the range, matching those after SLOW


def _frame(rows: int, size: int) -> Tensor:
    """Orthonormal rows that leave coordinate 0 (the constant) alone."""
    frame = torch.zeros(rows, size)
    frame[:, 1:] = torch.linalg.qr(torch.randn(size - 1, rows)).Q.T
    return frame


@torch.no_grad()
def wire_induction(model: Llama) -> None:
    """Overwrite part of the first two layers' attention. Mutates the model; draws from torch's generator."""
    s = model.s
    size, width, half = s.hidden_size, s.head_dim, s.head_dim // 2
    embedding = model.model.embed_tokens.weight
    embedding.normal_(std=size**-0.5)
    embedding[:, 0] = CONSTANT
    embedding /= embedding.norm(dim=1, keepdim=True)  # equal norms keep the constant equal behind the norm
    model.model.norm.weight.fill_(FINAL_GAIN)

    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    frequency = s.rope_theta ** -(torch.arange(half) / half)
    fast = torch.arange(half) < half * FAST
    slow = (torch.arange(half) >= half * SLOW).repeat(2)[:, None]

    token = _frame(width, size)
    back = _frame(2 * width, size)
    first.k_proj.weight[:width] = 0
    first.k_proj.weight[:width, 0] = torch.cat((fast * PHASE, torch.zeros(half)))
    first.v_proj.weight[:width] = token
    for head in (0, 1):
        rows = slice(head * width, (head + 1) * width)
        angle = frequency * -(head + 1)  # turn the query back by one or two positions
        first.q_proj.weight[rows] = 0
        first.q_proj.weight[rows, 0] = torch.cat((fast * PHASE * angle.cos(), fast * PHASE * angle.sin()))
        first.o_proj.weight[:, rows] = WRITE * back[rows].T

    back1, back2 = back[:width], back[width:]
    for group, (query, key) in enumerate(((token, back1), (back1, back2))):
        rows = slice(group * width, (group + 1) * width)
        copied = _frame(width, size)
        second.k_proj.weight[rows] = MATCH * slow * key
        second.v_proj.weight[rows] = copied
        for head in (2 * group, 2 * group + 1):
            columns = slice(head * width, (head + 1) * width)
            second.q_proj.weight[columns] = MATCH * slow * query
            second.o_proj.weight[:, columns] = COPY * copied.T
