"""A connection to a scheduler that has workers, or one line that says what is amiss."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cellnorm.errors import DataError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["opened"]

CONNECT = 10.0  # seconds for the scheduler to answer, and for the first worker to be there


@contextmanager
def opened(client: Client | str) -> Iterator[Client]:
    """Connect to a cluster that has workers; a connection that was made here is closed at the end.

    Parameters
    ----------
    client
        Address of a scheduler, tcp://host:port or tls://host:port, or a `distributed.Client` that is connected.

    Raises
    ------
    DataError
        If dask is not installed, address or client cannot be used, or, within some 10 seconds, nobody answers or no
        worker is there.

    Examples
    --------
    >>> from cellnorm import DataError
    >>> from cellnorm.cluster import opened
    >>> try:
    ...     with opened("localhost"):
    ...         pass
    ... except DataError as error:
    ...     print(str(error).partition(":")[0])
    A scheduler was asked for at 'localhost'. Give its address as tcp
    """
    if not isinstance(client, str):
        if client.status != "running" or client.asynchronous:
            raise DataError(
                f"A client was given that is {'asynchronous' if client.asynchronous else client.status}. "
                "Give one that is connected and not asynchronous, or the address of its scheduler."
            )
        _check_address(client.scheduler.address)
        _wait_for_worker(client)
        yield client
        return
    _check_address(client)
    connection = _connect(client)
    try:
        _wait_for_worker(connection)
        yield connection
    finally:
        connection.close()


def _connect(address: str) -> Client:
    try:
        from distributed import Client
    except ImportError as error:
        raise DataError(
            f"A cluster was asked for ({address}), but dask is not installed. "
            "Install it: pip install 'cellnorm[cluster]'"
        ) from error
    try:
        _greeted(address)
        return Client(address, timeout=CONNECT, set_as_default=False, name="cellnorm")
    except TypeError:
        said = (
            f"The scheduler {address} was to be reached by TLS, but dask knows no certificates. "
            "Name them in its configuration (distributed.comm.tls), or give an address with tcp://."
        )
    except (OSError, RuntimeError, UnicodeError) as error:
        lines = str(error).splitlines()
        said = (
            f"No scheduler answers at {address} ({lines[0] if lines else type(error).__name__}). "
            "Start one there (dask scheduler), or correct the address."
        )
    # The client that failed has to go now, and the error whose frames hold it: collected while another client starts,
    # it would wait for a lock that this one holds, forever.
    gc.collect()
    raise DataError(said)


def _greeted(address: str) -> None:
    """Raise OSError if nobody is there, or somebody who does not speak first: dask would wait for him forever."""
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname or "", parts.port or 0), CONNECT) as connection:
        if parts.scheme == "tcp" and not connection.recv(1):
            raise ConnectionError("the connection was closed")


def _check_address(address: str) -> None:
    """Refuse what is not tcp:// or tls://, such as workers that are threads of our own process."""
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("tcp", "tls") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise DataError(
            f"A scheduler was asked for at {address!r}. Give its address as tcp://host:port or tls://host:port; "
            "its workers must be processes of their own."
        )


def _wait_for_worker(client: Client) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT)
    except TimeoutError as error:
        address = client.scheduler.address
        raise DataError(
            f"The scheduler {address} has no workers. Start some (dask worker {address} --nthreads 1), "
            "and give the same command again."
        ) from error
