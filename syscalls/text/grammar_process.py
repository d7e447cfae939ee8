"""Looks at a long grammar in a process of its own, with little stack, memory and time.

The library walks rules that refer to each other by recursion: some thousands in a row, or schemas by `$ref`,
overflow the stack, and whoever compiles them dies without a word. What comes back alive from here can be
compiled by a thread with eight times the stack.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

__all__ = ["CHECK_STACK_BYTES", "MAX_CPU_SECONDS", "validate_apart"]

# Else the library traces its stack once more for each rule that an error passes: seconds for a small grammar.
os.environ.setdefault("RUST_LIB_BACKTRACE", "0")

MAX_CPU_SECONDS = 10
MAX_MEMORY_BYTES = 2 << 30
CHECK_STACK_BYTES = 64 << 20
NUM_REMEMBERED = 1024
END = 256  # the token behind the bytes


def validate_apart(source: str) -> str:
    """Return the library's complaint about a grammar, or "". Blocks: for a fifth of a second, or for long.

    What was found is remembered.
    """
    written = source.encode("utf-8", "surrogatepass")
    key = hashlib.sha256(written).digest()
    if (problem := _found.get(key)) is None:
        problem = _validate(written)
        while len(_found) >= NUM_REMEMBERED:  # several threads may be at it
            _found.pop(next(iter(_found), key), None)
        _found[key] = problem
    return problem


def _validate(source: bytes) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "syscalls.text.grammar_process", str(MAX_CPU_SECONDS)],
        input=source,
        capture_output=True,
        check=False,
    )
    if done.returncode == 0:
        return done.stdout.decode()
    if done.returncode == -signal.SIGXCPU:
        return f"it takes more than {MAX_CPU_SECONDS} seconds to compile"
    if done.returncode == -signal.SIGSEGV:
        return "its rules are nested too deeply"
    return f"it takes more than {MAX_MEMORY_BYTES >> 30} GiB to compile"


_found: dict[bytes, str] = {}  # by digest


class _Bytes:
    """A vocabulary of single bytes, as llguidance wants one."""

    def __init__(self) -> None:
        self.tokens = [*(bytes([byte]) for byte in range(END)), b"<end>"]
        self.eos_token_id, self.bos_token_id = END, None
        self.special_token_ids = [END]

    def __call__(self, text: str | bytes) -> list[int]:
        """One token for each byte."""
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    """Write the complaint about the grammar that stands on standard input to standard output."""
    cpu_seconds = int(sys.argv[1])
    source = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    problem = ""
    found: list[LLMatcher] = []

    def compile_grammar() -> None:
        nonlocal problem
        matcher = LLMatcher(LLTokenizer(TokenizerWrapper(_Bytes())), source, log_level=0)
        if matcher.get_error():  # perhaps only for want of a token that a model has
            problem = LLMatcher.validate_grammar(source)
        else:
            found.append(matcher)

    threading.stack_size(CHECK_STACK_BYTES)
    thread = threading.Thread(target=compile_grammar)
    thread.start()
    thread.join()
    for matcher in found:  # masks are made by threads with an ordinary stack
        matcher.compute_bitmask()
    sys.stdout.write(problem)


if __name__ == "__main__":
    main()
