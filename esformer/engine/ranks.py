"""The other ranks of torchrun or srun compute for rank 0, by connections of their own: collectives keep an order."""

import os
import socket
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from queue import Empty, SimpleQueue

from esformer.engine.executor import EngineError

JOINING = 600.0
"""Seconds in which every rank must have joined."""
HANDSHAKE = 10.0
"""Seconds in which whoever connects must have shown that it belongs here."""
CONNECTING = 64
"""Who may be about it at the same time."""


class RankListener:
    """Where the other ranks find rank 0; they join while it is at work.

    Args:
        host: the address at which to listen; all of this machine's for "".
        ranks: how many others there are.
    """

    def __init__(self, host: str, ranks: int) -> None:
        self.key, self.lacking = os.urandom(32), ranks
        self._deadline = time.monotonic() + JOINING
        self._closed = False
        self._listener = Listener((host, 0), backlog=1024)  # without a key, for it would wait for each in turn
        self._joined: SimpleQueue[tuple[str, Connection, int]] = SimpleQueue()
        self._connecting = threading.Semaphore(CONNECTING)
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.address[1])

    def joined(self) -> list[tuple[str, Connection, int]]:
        """Name, connection and capacity of those that have joined since the last call.

        Raises:
            EngineError: some did not in time.
        """
        joined = []
        with suppress(Empty):
            while True:
                joined.append(self._joined.get_nowait())
        self.lacking -= len(joined)
        if self.lacking and time.monotonic() > self._deadline:
            raise EngineError(f"{self.lacking} of the ranks did not join within {JOINING:.0f} s; see what they say")
        return joined

    def close(self) -> None:
        """Let nobody join any more."""
        self._closed = True
        with suppress(OSError):
            socket.create_connection(("localhost", self.port), timeout=1).close()  # wakes the thread
        self._listener.close()

    def _listen(self) -> None:
        while not self._closed:
            self._connecting.acquire()
            try:
                connection = self._listener.accept()
            except OSError:  # whoever that was
                self._connecting.release()
            else:
                threading.Thread(target=self._authenticate, args=(connection,), daemon=True).start()

    def _authenticate(self, connection: Connection) -> None:
        """Let join who knows the key; hang up on one that says nothing, or too slowly."""
        clock = threading.Timer(HANDSHAKE, _hang_up, [connection])
        clock.daemon = True
        clock.start()
        try:
            deliver_challenge(connection, self.key)
            answer_challenge(connection, self.key)
            _keep_alive(connection)
            name, capacity = connection.recv()
        except Exception:  # whoever that was, and whatever it sent
            connection.close()
        else:
            self._joined.put((name, connection, capacity))
        finally:
            clock.cancel()
            self._connecting.release()


def join(host: str, port: int, key: bytes, name: str, capacity: int) -> Connection:
    """On another rank: the connection to rank 0.

    Args:
        host: where rank 0 is.
        port: where it listens.
        key: that of its listener.
        name: of this rank, for people.
        capacity: how many tasks this rank computes at a time.

    Raises:
        OSError, EOFError: rank 0 is gone.
    """
    connection = Client((host, port), authkey=key)
    _keep_alive(connection)
    connection.send((name, capacity))
    return connection


def _hang_up(connection: Connection) -> None:
    """Have whoever waits for the other end wait no more."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as other:
        other.shutdown(socket.SHUT_RDWR)


def _keep_alive(connection: Connection) -> None:
    """Notice within minutes if the machine at the other end is gone without a word."""
    with socket.socket(fileno=os.dup(connection.fileno())) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        other.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        other.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
