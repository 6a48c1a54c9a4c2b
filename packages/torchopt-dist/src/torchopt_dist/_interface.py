"""Which network interface torch's engines listen on."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterator

__all__ = ["environment_defaults", "own_interface"]

# the request for an interface's address, see netdevice(7)
_SIOCGIFADDR = 0x8915


def own_interface(one_machine: bool) -> str | None:
    """Return the network interface on which this machine is reached by the others.

    On one machine that is the loopback interface, and on several the one that leads to the address
    which the launcher was given. Left alone, torch asks for the address of the host's name, which
    on many machines is that of the loopback interface.

    Returns:
        Its name; ``None``, which leaves the choice to torch, where it cannot be told.
    """
    if one_machine:
        names = {name for _, name in socket.if_nameindex()}
        return next((name for name in ("lo", "lo0") if name in names), None)
    master = os.environ.get("MASTER_ADDR")
    if master is None or sys.platform != "linux":
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((master, 9))  # which sends nothing: it only looks up the way
            address = probe.getsockname()[0]
    except OSError:
        return None
    if address.startswith("127."):  # the machine calls itself so; the others do not
        return None
    return next((name for _, name in socket.if_nameindex() if _address(name) == address), None)


@contextlib.contextmanager
def environment_defaults(**defaults: str | None) -> Iterator[None]:
    """Set variables of the environment that are not set, and have a default, for a while."""
    added = {
        name: value
        for name, value in defaults.items()
        if value is not None and name not in os.environ
    }
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _address(interface: str) -> str | None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:  # it has none
            return None
    return socket.inet_ntoa(found[20:24])
