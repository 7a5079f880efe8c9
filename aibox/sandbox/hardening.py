"""What a container of ours is started with: one pure function, so that it can be held against every list there is."""

from __future__ import annotations

from collections.abc import Mapping

from aibox.execution import Limits
from aibox.sandbox.paths import TERMINALS, WORKSPACE
from aibox.sandbox.program import COMMAND, ENVIRONMENT, INODES_A_MIB, OPEN_FILES

_MIB = 1024 * 1024
_OUR_PIDS = 2  # the supervisor and the interpreter
_GVISOR_PIDS = 256
GVISOR = "runsc"


def hardened(
    limits: Limits,
    *,
    image: str,
    name: str,
    uid: int,
    seccomp: str,
    runtime: str = "",
    gpus: int = 0,
    labels: Mapping[str, str] | None = None,
) -> list[str]:
    """Arguments of `docker run`, from `--rm` to the command. There is no way to add to them.

    `image` is a digest or an id, never a tag; `uid` is the guest's user, not 0; `seccomp` is the path of our profile;
    `gpus` is how many of the engine's first GPUs are passed in, which changes nothing else.
    Comments name the recommendation of the CIS Docker Benchmark, section 5.
    """
    if not image.startswith("sha256:") and "@sha256:" not in image:
        raise ValueError(f"an image is named by its digest, not {image!r}")
    if gpus < 0:
        raise ValueError("a number of GPUs is not below 0")
    if uid == 0:
        raise ValueError("a guest is never root")
    size = limits.workspace_mib * _MIB
    memory = f"{limits.memory_mib}m"
    tmpfs = f"rw,nosuid,nodev,size={size},nr_inodes={limits.workspace_mib * INODES_A_MIB},uid={uid},gid={uid},mode=0755"
    arguments = ["--rm", "--interactive", "--pull", "never", "--name", name, "--hostname", "sandbox"]
    arguments += ["--network", "none"]  # 5.10 no host network, 5.8 no ports, 5.30 no bridge
    arguments += ["--read-only"]  # 5.13
    arguments += ["--cap-drop", "ALL"]  # 5.4
    arguments += ["--security-opt", "no-new-privileges"]  # 5.26
    arguments += ["--security-opt", f"seccomp={seccomp}"]  # 5.22
    # gVisor asks of a file that a process has open only whose it is. So its first process, the supervisor, is another
    # user than the guest, and may become it: root with three capabilities, of gVisor's kernel and not of the host's.
    first = 0 if runtime == GVISOR else uid
    for capability in ("SETUID", "SETGID", "SETPCAP") if runtime == GVISOR else ():
        arguments += ["--cap-add", capability]
    arguments += ["--user", f"{first}:{first}"]
    # 5.29; the processes of gVisor's own kernel count here as well as the guest's, which it bounds by itself.
    arguments += ["--pids-limit", str(limits.pids + (_GVISOR_PIDS if runtime == GVISOR else _OUR_PIDS))]
    arguments += ["--memory", memory, "--memory-swap", memory]  # 5.11; as much as memory means: no swap
    arguments += ["--cpus", f"{limits.cpus:g}"]  # 5.12
    arguments += ["--ulimit", "core=0:0", "--ulimit", f"nofile={OPEN_FILES}:{OPEN_FILES}"]  # 5.19
    arguments += ["--ulimit", f"fsize={size}:{size}"]
    arguments += ["--tmpfs", f"{WORKSPACE}:{tmpfs},exec", "--tmpfs", f"/tmp:{tmpfs},noexec"]  # noqa: S108  the guest's
    # No terminals: they are counted for the whole machine, and one guest could take them all.
    arguments += ["--tmpfs", f"{TERMINALS}:ro,nosuid,nodev,noexec,size=4k,mode=0555"]
    arguments += ["--shm-size", str(size)]
    arguments += ["--ipc", "private", "--cgroupns", "private"]  # 5.17, 5.25
    arguments += ["--restart", "no", "--no-healthcheck", "--log-driver", "none"]  # 5.15; output is not kept anywhere
    arguments += ["--workdir", WORKSPACE]
    for key, value in ENVIRONMENT.items():
        arguments += ["--env", f"{key}={value}"]
    for key, value in (labels or {}).items():
        arguments += ["--label", f"{key}={value}"]
    if gpus:
        arguments += ["--gpus", str(gpus)]  # 5.18: by number, never `all`, and no device by its path
    if runtime:
        arguments += ["--runtime", runtime]
    return [*arguments, "--entrypoint", COMMAND[0], image, *COMMAND[1:]]
