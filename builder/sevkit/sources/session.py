# SPDX-License-Identifier: Apache-2.0
"""An http session that ends whatever the server does: it follows nothing, and it is watched.

A limit on each read is no limit on the whole. Bytes that belong to no file (one of a header now and
then, "100 Continue" without end) satisfy it for ever.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import requests
from requests.adapters import HTTPAdapter

Guard = Callable[[socket.socket], None]


class Watchdog:
    """Cuts the connections of a transfer once less than `least_bytes` came in `seconds`.

    Use as a context around the transfer. `has_cut` then says whether it was ended so.
    """

    def __init__(self, seconds: float, least_bytes: float):
        self.has_cut = False
        self._seconds = seconds
        self._least_bytes = least_bytes
        self._came = 0
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        for connection in self._connections:
            connection.close()

    def came(self, size: int) -> None:
        """Know that `size` bytes of the file came."""
        self._came += size

    def guard(self, connection: socket.socket) -> None:
        """Have `connection` cut with the others. TLS takes the descriptor away, so keep another."""
        with self._lock:
            self._connections.append(connection.dup())
            if self.has_cut:
                self._cut()

    def _watch(self) -> None:
        before = 0
        while not self._over.wait(self._seconds):
            came = self._came
            if came - before < self._least_bytes:
                with self._lock:
                    self.has_cut = True
                    self._cut()
                return
            before = came

    def _cut(self) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):  # the other side may have been faster
                connection.shutdown(socket.SHUT_RDWR)


class Session(requests.Session):
    """Shows each connection to `guard` before anything is read from it; follows no redirection."""

    def __init__(self, guard: Guard):
        super().__init__()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(guard))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Nowhere. What requests would follow it first reads whole, and decompressed."""


class _Adapter(HTTPAdapter):
    """Makes connections, its own and those to a proxy, that `guard` has seen."""

    def __init__(self, guard: Guard):
        self._guard = guard
        super().__init__()

    def init_poolmanager(self, *words: Any, **named: Any) -> None:
        super().init_poolmanager(*words, **named)
        self._guarded(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
        return self._guarded(super().proxy_manager_for(proxy, **named))

    def _guarded(self, manager: Any) -> Any:
        pools = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {
            scheme: _guarded_pool(pool, self._guard) for scheme, pool in pools.items()
        }
        return manager


def _guarded_pool(pool: Any, guard: Guard) -> type:
    """A kind of urllib3's connection pool whose connections show their sockets to `guard`."""
    kind = pool.ConnectionCls

    def new_connection(connection: Any) -> Any:
        made = kind._new_conn(connection)
        guard(made)
        return made

    guarded = type(kind.__name__, (kind,), {"_new_conn": new_connection})
    return type(pool.__name__, (pool,), {"ConnectionCls": guarded})
