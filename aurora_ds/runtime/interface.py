"""The network interface towards another host: gloo must be told it, or it takes the address of this host's name, which
on many systems is 127.0.1.1. Standard library only; `aurora-ds doctor` runs this file on hosts without the package."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

_SIOCGIFADDR, _SIOCGIFMTU = 0x8915, 0x8921  # linux/sockios.h
GLOO = "GLOO_SOCKET_IFNAME"


def interface_towards(address: str) -> str | None:
    """The interface whose IPv4 address this host would use towards `address`; None where there is none or it is the
    loopback."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing: the kernel only chooses the route
            own = probe.getsockname()[0]
    except OSError:
        return None
    if own.startswith("127."):
        return None
    return next((name for _, name in socket.if_nameindex() if _address(name) == own), None)


def tell_gloo() -> None:
    """Set GLOO_SOCKET_IFNAME to the interface towards MASTER_ADDR, on each host its own, unless it is set."""
    name = interface_towards(os.environ.get("MASTER_ADDR", "127.0.0.1"))
    if GLOO not in os.environ and name is not None:
        os.environ[GLOO] = name


def transfer_unit(name: str) -> int:
    """The interface's MTU, in bytes."""
    return struct.unpack("16si", _ask(name, _SIOCGIFMTU)[:20])[1]


def _address(name: str) -> str | None:
    try:
        return socket.inet_ntoa(_ask(name, _SIOCGIFADDR)[20:24])
    except OSError:  # an interface without an IPv4 address
        return None


def _ask(name: str, what: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket.fileno(), what, struct.pack("256s", name.encode()[:15]))
