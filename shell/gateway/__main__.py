"""`python -m shell.gateway --listen HOST:PORT --socket PATH`."""

from __future__ import annotations

import sys

import structlog
import trio

from shell.gateway.config import parse_arguments
from shell.gateway.logs import configure_logging
from shell.gateway.server import run_gateway
from syscalls.descriptors import use_descriptors
from syscalls.realtime import explain_refusal, go_before_others


def main() -> int:
    """Run the gateway until it is told to stop. Returns the exit status: 0 after an orderly drain."""
    config = parse_arguments(sys.argv[1:])
    configure_logging(config.log_level, config.log_format)
    log = structlog.get_logger("gateway")
    use_descriptors(lambda message: log.error("no_connections_taken", message=message))
    if config.realtime:
        try:
            go_before_others()
        except OSError as error:
            log.error("not_started", error=explain_refusal(error))
            return 1
    try:
        trio.run(run_gateway, config)
    except* OSError as group:
        log.error("not_started", error=str(group.exceptions[0]))
        return_code = 1
    else:
        return_code = 0
    return return_code


if __name__ == "__main__":
    sys.exit(main())
