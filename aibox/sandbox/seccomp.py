"""A filter of system calls: what namespaces do not hold is refused by number. Classic BPF; see seccomp(2).

Network namespaces do not cover AF_VSOCK, which reaches the hypervisor; keyrings, the kernel's log, BPF, io_uring and
userfaultfd need no capability and have been the way out before. Everything else is left to namespaces and capabilities.
"""

from __future__ import annotations

import errno
import os
import struct

# linux/audit.h and asm/unistd.h. Per system call: its number on x86-64 and on aarch64.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_REFUSED = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "request_key": (249, 218),
    "setns": (308, 268),
    "syslog": (103, 116),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_SOCKET = (41, 198)
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000


def program() -> bytes | None:
    """The filter for this machine, as an array of struct sock_filter; None where its numbers are not known."""
    if os.uname().machine not in _ARCHITECTURES:
        return None
    column, architecture = _ARCHITECTURES[os.uname().machine]
    not_permitted = _REFUSE | errno.EPERM
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        # A second architecture has numbers of its own, so it would pass the filter by.
        _step(_EQUAL, architecture, then=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if architecture == _ARCHITECTURES["x86_64"][1]:
        steps += [_step(_AT_LEAST, _X32, otherwise=1), _step(_RETURN, not_permitted)]
    for numbers in _REFUSED.values():
        steps += [_step(_EQUAL, numbers[column], otherwise=1), _step(_RETURN, not_permitted)]
    steps += [_step(_EQUAL, _SOCKET[column], then=1), _step(_RETURN, _ALLOW), _step(_LOAD, _FIRST_ARGUMENT)]
    for family in _FAMILIES:
        steps += [_step(_EQUAL, family, otherwise=1), _step(_RETURN, _ALLOW)]
    steps.append(_step(_RETURN, _REFUSE | errno.EAFNOSUPPORT))
    return b"".join(steps)


def _step(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)
