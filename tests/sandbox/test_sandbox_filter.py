"""The filter of system calls for both architectures, also the one that this machine is not: run as the kernel does."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import struct
from types import SimpleNamespace

import pytest

from aibox.sandbox import seccomp

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
LIBSECCOMP = ctypes.util.find_library("seccomp")
ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, EAFNOSUPPORT = (0x00050000 | code for code in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT))
NEW_IN_THIS_TABLE = {"open_tree_attr"}
"""Numbers that a library of 2022 does not know yet; all later ones are the same on both. Linux 6.15."""


@pytest.fixture(params=ARCHITECTURES)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=request.param))
    name: str = request.param
    return name


def column(machine: str) -> int:
    return list(ARCHITECTURES).index(machine)


def decided(program: bytes, number: int, architecture: int, *arguments: int) -> int:
    """What the kernel would decide: the five instructions of classic BPF that the filter is made of, seccomp(2)."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
    at, held = 0, 0
    while True:
        code, then, otherwise, value = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            held = struct.unpack_from("<I", data, value)[0]
        elif code == 0x06:
            return int(value)
        else:
            true = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
            at += then if true else otherwise


def resolve(name: str, machine: str) -> int:
    """The number by libseccomp, which keeps tables of its own; negative for a call that the architecture has not."""
    if LIBSECCOMP is None:
        pytest.skip("libseccomp is not installed here: apt install libseccomp2")
    ask = ctypes.CDLL(LIBSECCOMP).seccomp_syscall_resolve_name_arch
    ask.argtypes, ask.restype = [ctypes.c_uint32, ctypes.c_char_p], ctypes.c_int
    return int(ask(ARCHITECTURES[machine], name.encode()))


def test_the_numbers_are_those_of_libseccomp(machine: str) -> None:
    """For each call that is refused or looked at, on either architecture, and for those that one of them never had."""
    looked_at = {
        **seccomp._REFUSED,
        "clone": seccomp._CLONE,
        "clone3": seccomp._CLONE3,
        "ioctl": seccomp._IOCTL,
        "socket": seccomp._SOCKET,
    }
    for name in looked_at.keys() - NEW_IN_THIS_TABLE:
        told, ours = resolve(name, machine), looked_at[name][column(machine)]
        assert (told if told >= 0 else None) == ours, name


def test_what_is_refused_is_refused_on_both(machine: str) -> None:
    """Each call of the table is not permitted, and under another architecture's name nothing runs at all."""
    program, architecture = seccomp.program(), ARCHITECTURES[machine]
    assert program is not None
    for name, numbers in seccomp._REFUSED.items():
        number = numbers[column(machine)]
        if number is not None:
            assert decided(program, number, architecture) == EPERM, name
    for other in {*ARCHITECTURES.values(), 0x40000003, 0x40000028} - {architecture}:  # those of 32 bits too
        assert decided(program, 0, other) == KILL
    if machine == "x86_64":
        assert decided(program, 0x40000000, architecture) == EPERM  # x32, whose numbers are others


def test_arguments_decide_on_both(machine: str) -> None:
    """No new namespace by clone, none of the calls that type into a terminal, four families of sockets."""
    program, architecture, at = seccomp.program(), ARCHITECTURES[machine], column(machine)
    assert program is not None
    for bit in range(32):
        new = bool(1 << bit & 0x7E020080)
        assert decided(program, seccomp._CLONE[at], architecture, 1 << bit | 17) == (EPERM if new else ALLOW), bit
    assert decided(program, seccomp._CLONE3[at], architecture) == ENOSYS
    for request, told in ((0x5412, EPERM), (0x541C, EPERM), (0x5413, ALLOW)):
        assert decided(program, seccomp._IOCTL[at], architecture, 0, request) == told
    for family in range(64):
        wanted = ALLOW if family in (1, 2, 10, 16) else EAFNOSUPPORT
        assert decided(program, seccomp._SOCKET[at], architecture, family) == wanted


def test_what_programs_need_passes_on_both(machine: str) -> None:
    """What an engine's profile allows is let through here as well: nothing has another's number by mistake."""
    program = seccomp.program()
    assert program is not None
    for name in seccomp._ALLOWED.split():
        if name not in ("ioctl", "socket") and (number := resolve(name, machine)) >= 0:
            assert decided(program, number, ARCHITECTURES[machine]) == ALLOW, name


def test_where_numbers_are_not_known_there_is_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third architecture gets none, which the driver says of itself, and never a wrong one."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    assert seccomp.program() is None
