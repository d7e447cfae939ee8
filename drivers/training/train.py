"""Train the built-in model or its draft: `python -m drivers.training.train --out DIR --steps N`.

The run is a function of the seed and the number of steps. Matrices are optimised by Muon, which
forms the recall heads in far fewer tokens than AdamW; embeddings and gains by AdamW. A checkpoint
in DIR resumes the run; the tokenizer is trained first, or taken from `--tokenizer`.

The draft (`--draft`) can learn from a teacher (`--teacher DIR`): it then imitates the teacher's
distribution, since what a draft is for is agreement, not truth.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from drivers.training import corpus, evaluate
from drivers.training.mixture import Mixture, stage_at
from drivers.training.model import Llama, base_shape, draft_shape, load_model, save_model
from drivers.training.tokenizer import save_tokenizer, train_tokenizer
from drivers.training.wiring import wire_induction

MUON_RATE, ADAM_RATE, WARM_UP, WEIGHT_DECAY = 4e-3, 3e-3, 100, 0.1
CHECKPOINT_EVERY, REPORT_EVERY, PROBE_EVERY = 100, 20, 200


def learning_rate(step: int, progress: float) -> float:
    """Warm-up, then a cosine to zero; a factor in [0, 1]."""
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def optimizers(model: Llama) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
    ]


def task_loss(model: nn.Module, ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the cross entropy."""
    losses = F.cross_entropy(model(ids).float().flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def imitation_loss(model: nn.Module, ids: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the cross entropy against the teacher's distribution."""
    losses = F.cross_entropy(model(ids).float().flatten(0, 1), teacher.flatten(0, 1), reduction="none")
    weights = weights.flatten() + 0.3  # questions and random values too: a draft sees every token
    return (losses * weights).sum() / weights.sum()


def bar(progress: float) -> str:
    """A progress bar."""
    done = int(30 * progress)
    return f"[{'#' * done}{'.' * (30 - done)}] {progress:6.1%}"


def tokenizer_texts(books: list[corpus.Book], seed: int) -> list[str]:
    """What the tokenizer learns from: the English prose and a sample of the tasks."""
    from drivers.training.dialogue import chat_turn
    from drivers.training.words import WORDS

    rng = random.Random(seed)
    english = [b.train for b in books if b.language == "en"]
    prose = corpus.sentences(english[0])
    turns = [" ".join(chat_turn(rng, prose)) for _ in range(12000)]
    return [
        *english,
        *turns,
        *(f" {w}" for w in WORDS for _ in range(60)),
        *(w for w in WORDS for _ in range(20)),
    ]


def train(args: argparse.Namespace) -> None:
    """Run or resume."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    books = corpus.load_books()
    path = args.tokenizer or args.out / "tokenizer.json"
    if not path.exists():
        save_tokenizer(train_tokenizer(tokenizer_texts(books, args.seed)), args.out)
    tokenizer = Tokenizer.from_file(str(path))
    save_tokenizer(tokenizer, args.out)
    ids = {name: tokenizer.token_to_id(t) for name, t in
           {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "end": "<|end|>"}.items()}  # fmt: skip

    vocab_size = tokenizer.get_vocab_size()
    if args.init:
        model = load_model(args.init)
    else:
        model = Llama((draft_shape if args.draft else base_shape)(vocab_size))
        wire_induction(model)
    teacher = load_model(args.teacher).requires_grad_(False) if args.teacher else None
    optims = optimizers(model)
    step, spent = 0, 0.0
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        step, spent = state["step"], state["spent"]
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)

    mixture = Mixture(tokenizer, books, args.seed)
    loss_of = imitation_loss if teacher else task_loss
    if args.compile:
        loss_of = torch.compile(loss_of, dynamic=False)
        teacher = teacher and torch.compile(teacher, dynamic=False)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {vocab_size:,}", flush=True)

    def progress() -> float:
        return step / args.steps if args.steps else min(1.0, spent / (60 * args.minutes))

    seen, mark, mean = 0, time.monotonic(), None
    while progress() < 1.0:
        began = time.monotonic()
        inputs, targets, weights = mixture.batch(step, progress())
        factor = learning_rate(step, progress()) * args.rate
        for optim, rate in zip(optims, (MUON_RATE, ADAM_RATE), strict=True):
            optim.param_groups[0]["lr"] = rate * factor
        with torch.autocast("cpu", torch.bfloat16):
            if teacher:
                with torch.no_grad():
                    targets = F.softmax(teacher(inputs).float(), dim=-1)
            loss = loss_of(model, inputs, targets, weights)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        step += 1
        spent += time.monotonic() - began
        seen += inputs.numel()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if step % REPORT_EVERY == 0:
            rate, seen, mark = seen / (time.monotonic() - mark), 0, time.monotonic()
            print(
                f"{bar(progress())} step {step} length {stage_at(progress()).length} "
                f"loss {mean:.3f} {rate:,.0f} tokens/s {spent / 60:.1f} min",
                flush=True,
            )
        if step % CHECKPOINT_EVERY == 0:
            save_model(model, args.out, ids)
            state = {"step": step, "spent": spent, "model": model.state_dict(),
                     "optims": [o.state_dict() for o in optims]}  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
        if step % PROBE_EVERY == 0:
            print(evaluate.quick(model, tokenizer, books, stage_at(progress()).length), flush=True)
            mark = time.monotonic()
    save_model(model, args.out, ids)
    print(f"done: {step} steps, {spent / 60:.1f} minutes, {args.out}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="reproducible length of the run")
    length.add_argument("--minutes", type=float, help="length by the clock; not reproducible")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draft", action="store_true", help="train the draft's shape")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to use instead of training one")
    parser.add_argument("--teacher", type=Path, help="imitate the model in this folder")
    parser.add_argument("--init", type=Path, help="start from the weights in this folder")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    train(parser.parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
