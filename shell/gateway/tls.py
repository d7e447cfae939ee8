"""TLS of one connection, without I/O: bytes of the wire in, bytes of the application out, and back.

Because nothing waits here, an event is sealed and written at once, as on the plain port: a stream that had to
wait for a turn of its own to send would wake a task for each token.
"""

from __future__ import annotations

import ssl
from contextlib import suppress

RECORD_BYTES = 16 << 10  # what one record holds at most


def make_server_context(certificate: str, key: str) -> ssl.SSLContext:
    """Read a certificate with its chain, and its key. TLS 1.2 and up. Raises OSError that names the files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a write never has to wait for a read
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # SSLError is one, too
        raise OSError(f"--tls-cert {certificate}, --tls-key {key}: {error}") from error
    return context


class TlsCodec:
    """The server's side of one TLS connection. After each call, `take_output` has what must be sent."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_open = False  # the handshake is done
        self.is_over = False  # the client says nothing more

    def open(self, data: bytes | bytearray) -> bytes:
        """Take what came off the wire, b"" for its end; return what it says, b"" when that is nothing yet.

        Raises ssl.SSLError: it is no TLS, or not for us; `take_output` may have an alert for the client.
        """
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        said = bytearray()
        try:
            if not self._is_open:
                self._object.do_handshake()
                self._is_open = True
            while piece := self._object.read(RECORD_BYTES):
                said += piece
            self.is_over = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):  # HTTP itself tells a message that was cut
            self.is_over = True
        return bytes(said)

    def seal(self, data: bytes) -> bytes:
        """Return the bytes for the wire that say `data`, and what else had to be sent. Not before it is open.

        Raises ssl.SSLError: the connection is broken.
        """
        view = memoryview(data)
        while view:
            view = view[self._object.write(view) :]
        return self._outgoing.read()

    def take_output(self) -> bytes:
        """Return what has to be sent beside what is said: handshake, alerts, new keys. Often nothing."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def farewell(self) -> bytes:
        """Return the bytes that say that nothing follows."""
        if self._is_open:
            with suppress(ssl.SSLError):  # it wants the client's farewell, for which nobody waits
                self._object.unwrap()
        return self._outgoing.read()
