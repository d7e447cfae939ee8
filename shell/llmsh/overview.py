"""What there is to know about the shell beside its commands: a page of the manual, and of docs/llmsh.md."""

from __future__ import annotations

import inspect

SUMMARY = "the shell of llmos: processes are run, watched, stopped and joined by pipes as elsewhere"

_TEXTS = {
    "Calling it": """
        `llmsh` at a terminal shows a prompt. `llmsh -c COMMANDS` runs commands and exits, `llmsh FILE`
        those of a file, and `COMMANDS | llmsh` those that come in a pipe. `--json` prints every listing as
        JSON, `--socket PATH` names the kernel's socket; without it that is $LLMOS_SOCKET,
        $XDG_RUNTIME_DIR/llmos/llmos.sock or /tmp/llmos-UID/llmos.sock.

        In a pipe nothing is coloured, cut to a width, redrawn or asked. With NO_COLOR set a terminal shows
        no colours either, and with TERM=dumb nothing is redrawn.
    """,
    "Lines": """
        Words are divided by blanks. Text with blanks or any of ; | & < > # $ ' " goes in quotes; in double
        quotes $ and \\ keep their meaning. `;` or a newline divides commands, `&&` runs the next one if the
        last succeeded, `||` if it failed, and # begins a comment.

        `NAME=VALUE` sets a variable of the shell and `$NAME` or `${NAME}` stands for it, or for one of the
        environment. `$?` is the last exit code, `$!` the last process that went to the background, and
        `$(COMMANDS)` what they write. A value is always one word.
    """,
    "Pipes and files": """
        `A | B` gives what A writes to B, as it comes; `< FILE`, `> FILE` and `>> FILE` read, replace and
        extend a file. `run` puts its input where the prompt says {}, else after it; with --each-line it
        runs a process for each line.

        All commands of a pipe are one job. When a command has read enough, whoever writes to it is ended,
        its processes too.
    """,
    "Jobs and keys": """
        A job is what one line started. `&` after a line runs it in the background; `%N` names job N
        wherever a pid may stand. `jobs` lists them, `fg` and `bg` go on with one. Processes end with the
        shell, but for those of `run --detach` and `restore`.

        Ctrl-C ends what is in the foreground, its processes too; at the prompt it drops the line. Ctrl-Z
        stops the job in the foreground. Ctrl-D at the prompt leaves. Tab completes commands, options, pids,
        jobs, models, images, tenants, variables and files; arrow up and Ctrl-R bring earlier lines back.
        They are kept in $XDG_STATE_HOME/llmos/llmsh_history, else under ~/.local/state.
    """,
    "Exit codes": """
        0: done. 1: it failed. 2: it was called in a wrong way. 3: no kernel answers. 130: Ctrl-C. 137: a
        process that it waited for was killed. 141: whoever read the output has left.
    """,
}

SECTIONS = {title: inspect.cleandoc(text).split("\n\n") for title, text in _TEXTS.items()}  # paragraphs
