"""`python -m llmos.bench.attackers KIND URL`: clients that a gateway should survive, until SIGTERM.

idle       1,000 connections that say nothing
slowloris  500 connections that send a byte of a request's head each second
bodies     2 clients that send bodies of just below 64 MiB, one after the other

Prints, at the end, how often it began: connections, or bodies.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from urllib.parse import urlsplit

NUM_IDLE, NUM_SLOW, NUM_BODIES = 1000, 500, 2
BODY_BYTES = (64 << 20) - 1024
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Long: " + b"y" * 600
KINDS = ("idle", "slowloris", "bodies")


class Attack:
    """Clients of one kind against one address."""

    def __init__(self, url: str) -> None:
        split = urlsplit(url)
        self._address = split.hostname or "", split.port or 80
        self._is_over = threading.Event()
        self.num_begun = 0

    def run(self, kind: str) -> None:
        """Attack until `stop`. Blocks."""
        match kind:
            case "bodies":
                threads = [threading.Thread(target=self._send_bodies) for _ in range(NUM_BODIES)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            case "idle":
                self._hold(NUM_IDLE, is_talking=False)
            case "slowloris":
                self._hold(NUM_SLOW, is_talking=True)
            case _:
                raise ValueError(f"{kind} is none of {', '.join(KINDS)}")

    def stop(self) -> None:
        """End soon."""
        self._is_over.set()

    def _connect(self) -> socket.socket:
        self.num_begun += 1
        raw = socket.create_connection(self._address)
        raw.settimeout(5)
        return raw

    def _hold(self, count: int, *, is_talking: bool) -> None:
        """Keep connections open, anew where the server ends them."""
        raws = [self._connect() for _ in range(count)]
        place = 0
        while not self._is_over.wait(1.0):
            place = place % len(HEAD) + 1
            for index, raw in enumerate(raws):
                try:
                    if is_talking:
                        raw.sendall(HEAD[place - 1 : place])
                except OSError:
                    raw.close()
                    raws[index] = self._connect()
        for raw in raws:
            raw.close()

    def _send_bodies(self) -> None:
        """The server may refuse, and may hang up."""
        begin, end = b'{"messages":[{"role":"user","content":"', b'"}]}'
        body = begin + b"a" * (BODY_BYTES - len(begin) - len(end)) + end
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        while not self._is_over.is_set():
            with self._connect() as raw:
                try:
                    raw.sendall(head.encode() + b"Connection: close\r\n\r\n")
                    for start in range(0, len(body), 1 << 20):
                        if self._is_over.is_set():
                            return
                        raw.sendall(body[start : start + (1 << 20)])
                    raw.settimeout(30)
                    while raw.recv(1 << 16):
                        pass
                except OSError:
                    time.sleep(0.1)


def main() -> None:
    """Attack until told to stop."""
    kind, url = sys.argv[1:]
    attack = Attack(url)
    signal.signal(signal.SIGTERM, lambda *_: attack.stop())
    attack.run(kind)
    print(attack.num_begun)


if __name__ == "__main__":
    main()
