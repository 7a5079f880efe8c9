"""A filter of system calls: what namespaces do not hold is refused by number. Classic BPF; see seccomp(2).

Network namespaces do not cover AF_VSOCK, which reaches the hypervisor; keyrings, the kernel's log, BPF, io_uring and
userfaultfd need no capability and have been the way out before. Mounts, modules, tracing and clocks are refused here as
well as by the lack of capabilities: a hole in one is not a hole in both. Refused is also what the kernel counts for the
whole machine or for a user, so that one guest could take it from all (inotify, asynchronous I/O), and memory that
belongs to no process (System V, message queues).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

# linux/audit.h and asm/unistd.h. Per system call: its number on x86-64 and on aarch64.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_REFUSED: dict[str, tuple[int, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmat": (30, 196),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
    "vmsplice": (278, 75),
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


# What Python, a shell and the usual tools need, and nothing besides: a container engine refuses the rest.
_ALLOWED = """
accept accept4 access alarm arch_prctl bind brk capget chdir chmod chown clock_getres clock_gettime clock_nanosleep
close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait
epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate
fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fstat fstatfs fsync
ftruncate futex futex_waitv futimesat get_robust_list getcpu getcwd getdents getdents64 getegid geteuid getgid
getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit
getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr ioctl kill lchown lgetxattr link linkat
listen listxattr llistxattr lseek lstat madvise membarrier memfd_create mincore mkdir mkdirat mknod mknodat mmap
mprotect mremap msync munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2
poll ppoll prctl pread64 preadv preadv2 prlimit64 pselect6 pwrite64 pwritev pwritev2 read readahead readlink
readlinkat readv recvfrom recvmmsg recvmsg rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_setaffinity sched_yield select sendfile sendmmsg sendmsg sendto set_robust_list set_tid_address setitimer
setpgid setpriority setrlimit setsid setsockopt shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs
statx symlink symlinkat sync_file_range sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink
unlinkat utime utimensat utimes vfork wait4 waitid write writev
"""


def profile() -> dict[str, Any]:
    """The same for a container engine, in its JSON, and stricter: what is not named is refused."""
    rules: list[dict[str, Any]] = [{"names": sorted(_ALLOWED.split()), "action": "SCMP_ACT_ALLOW"}]
    for family in _FAMILIES:
        equal = {"index": 0, "value": family, "op": "SCMP_CMP_EQ"}
        rules.append({"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [equal]})
    plain = {"index": 0, "value": _NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    rules.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [plain]})
    rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    architectures = ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
    return {"defaultAction": "SCMP_ACT_ERRNO", "architectures": architectures, "syscalls": rules}


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
    for number in (numbers[column] for numbers in _REFUSED.values()):
        if number is not None:  # an older call, which this architecture never had
            steps += [_step(_EQUAL, number, otherwise=1), _step(_RETURN, not_permitted)]
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
