"""All that the gateway says goes to stderr through structlog: JSON lines, or coloured on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from syscalls.log_lines import LogStream, escape_texts


def configure_logging(log_level: str = "info", log_format: str = "auto") -> None:
    """Route structlog and the standard library's logging to stderr in one format.

    Args:
        log_level: the least level that is let through: "debug", "info", "warning" or "error".
        log_format: "json", "console", or "auto": by whether stderr is a terminal.
    """
    level = logging.getLevelNamesMapping()[log_level.upper()]
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = (
        [
            escape_texts,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
        if is_console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(LogStream())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
