"""A filter of system calls: what namespaces do not hold is refused by number. Classic BPF; see seccomp(2).

Network namespaces do not cover AF_VSOCK, which reaches the hypervisor; keyrings, the kernel's log, BPF, io_uring and
userfaultfd need no capability and have been the way out before. Mounts, modules and tracing are refused here as well as
by the lack of capabilities: a hole in one is not a hole in both.
"""

from __future__ import annotations

import errno
import os
import struct

# linux/audit.h and asm/unistd.h. Per system call: its number on x86-64 and on aarch64.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_REFUSED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_NEW_NAMESPACES = 0x7E020080  # linux/sched.h: CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET and TIME
_IOCTL = (16, 29)
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX put words into a terminal
_SOCKET = (41, 198)
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24  # offsets in struct seccomp_data
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
    # clone3 keeps its flags in memory, where a filter cannot look; libraries then fall back to clone.
    steps += [_step(_EQUAL, _CLONE3[column], otherwise=1), _step(_RETURN, _REFUSE | errno.ENOSYS)]
    steps += [_step(_EQUAL, _CLONE[column], otherwise=4), _step(_LOAD, _FIRST_ARGUMENT)]
    steps += [_step(_ANY_BIT, _NEW_NAMESPACES, otherwise=1), _step(_RETURN, not_permitted), _step(_RETURN, _ALLOW)]
    steps += [_step(_EQUAL, _IOCTL[column], otherwise=5), _step(_LOAD, _SECOND_ARGUMENT)]
    steps += [_step(_EQUAL, _TERMINAL[0], then=1), _step(_EQUAL, _TERMINAL[1], otherwise=1)]
    steps += [_step(_RETURN, not_permitted), _step(_RETURN, _ALLOW)]
    steps += [_step(_EQUAL, _SOCKET[column], then=1), _step(_RETURN, _ALLOW), _step(_LOAD, _FIRST_ARGUMENT)]
    for family in _FAMILIES:
        steps += [_step(_EQUAL, family, otherwise=1), _step(_RETURN, _ALLOW)]
    steps.append(_step(_RETURN, _REFUSE | errno.EAFNOSUPPORT))
    return b"".join(steps)


def _step(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)
