"""Logging: structlog to standard error, one line an event."""

from __future__ import annotations

import logging
import sys
from typing import TextIO, cast

import structlog

from syscalls.log_lines import LogStream, escape_texts


def configure_logging(level: str, form: str) -> None:
    """Set the least level ("debug" … "error") and the form ("console" or "json") of this process's log."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The default shows locals: those of the kernel have all of it in reach, gigabytes of text.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    processors.append(structlog.processors.format_exc_info if form == "json" else escape_texts)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", LogStream())),
        cache_logger_on_first_use=True,
    )
