"""What can be said of the docker driver without an engine: its arguments, its filter, and what it refuses."""

from __future__ import annotations

import itertools
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibox.audit.chain import AuditChain
from aibox.errors import AccessError, SandboxError
from aibox.execution import Limits
from aibox.policy.policy import Policy
from aibox.protocols import Driver
from aibox.sandbox import seccomp
from aibox.sandbox.auto import Auto
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.sandbox.configured import make_sandbox
from aibox.sandbox.docker import Docker
from aibox.sandbox.engine import Facts
from aibox.sandbox.escapes import ESCAPES, TOOLKIT, holes
from aibox.sandbox.hardening import hardened
from aibox.sandbox.sandbox import Sandbox
from aibox.settings_parts import SandboxSettings
from aibox.types import Scope

DIGEST = "sha256:" + "0" * 64


def arguments(limits: Limits, **options: object) -> list[str]:
    wanted = {"image": DIGEST, "name": "n", "uid": 70000, "seccomp": "/p.json", **options}
    return hardened(limits, **wanted)  # type: ignore[arg-type]  # the test's own mixture


def values(words: list[str], option: str) -> list[str]:
    return [after for word, after in itertools.pairwise(words) if word == option]


def profile(names: set[str]) -> set[str]:
    return {name for rule in seccomp.profile()["syscalls"] for name in rule["names"] if name in names}


@given(
    st.builds(
        Limits,
        memory_mib=st.integers(16, 9999),
        pids=st.integers(1, 999),
        cpus=st.floats(0.1, 64),
        workspace_mib=st.integers(1, 9999),
    )
)
def test_the_arguments_hold_against_the_cis_list(limits: Limits) -> None:
    """For any limits each recommendation of section 5 that a command line can show is followed."""
    words = arguments(limits)
    options = words[: words.index(DIGEST)]
    assert values(options, "--cap-drop") == ["ALL"]  # 5.4
    assert "--cap-add" not in options
    assert "--privileged" not in options  # 5.5
    assert not {"-v", "--volume", "--mount", "--volumes-from"} & set(options)  # 5.6, 5.20, 5.32
    assert not {"-p", "-P", "--publish", "--publish-all"} & set(options)  # 5.8, 5.9, 5.14
    assert values(options, "--network") == ["none"]  # 5.10, 5.30
    assert values(options, "--memory") == values(options, "--memory-swap") == [f"{limits.memory_mib}m"]  # 5.11
    assert values(options, "--cpus") == [f"{limits.cpus:g}"]  # 5.12
    assert "--read-only" in options  # 5.13
    assert values(options, "--restart") == ["no"]  # 5.15
    assert not {"--pid", "--uts", "--userns", "--cgroup-parent"} & set(options)  # 5.16, 5.21, 5.31, 5.25
    assert values(options, "--ipc") == ["private"]  # 5.17
    assert not {"--device", "--gpus", "--device-cgroup-rule"} & set(options)  # 5.18
    assert len(values(options, "--ulimit")) == 3  # 5.19
    assert set(values(options, "--security-opt")) == {"no-new-privileges", "seccomp=/p.json"}  # 5.22, 5.26
    assert values(options, "--pids-limit") == [str(limits.pids + 2)]  # 5.29
    assert values(options, "--user") == ["70000:70000"]
    assert values(options, "--pull") == ["never"]
    assert all("nosuid" in mount and "nodev" in mount and "size=" in mount for mount in values(options, "--tmpfs"))
    assert not any(word.startswith("-") and "=" in word for word in options)  # no option hides in another's word


@given(st.builds(Limits, memory_mib=st.integers(16, 9999)), st.integers(1, 16))
def test_gpus_change_nothing_but_their_number(limits: Limits, gpus: int) -> None:
    """With GPUs the arguments are the same and one more: no other image, environment, mount, device or right."""
    plain, words = arguments(limits), arguments(limits, gpus=gpus)
    at = words.index("--gpus")
    assert words[at + 1] == str(gpus)
    assert [*words[:at], *words[at + 2 :]] == plain
    assert at < words.index(DIGEST)
    assert "--gpus" not in arguments(limits, gpus=0)
    with pytest.raises(ValueError, match="GPUs"):
        arguments(limits, gpus=-gpus)


def test_gvisor_gets_a_supervisor_that_can_become_the_guest_and_nothing_else() -> None:
    """Its first process is root of gVisor's own kernel with three capabilities; files are the guest's as elsewhere."""
    plain, words = (arguments(Limits(), runtime=runtime) for runtime in ("runc", "runsc"))
    options = words[: words.index(DIGEST)]
    assert values(options, "--user") == ["0:0"]
    assert values(options, "--cap-drop") == ["ALL"]
    assert values(options, "--cap-add") == ["SETUID", "SETGID", "SETPCAP"]
    assert values(options, "--tmpfs") == values(plain, "--tmpfs")
    ours = {"--user", "--cap-add", "--runtime", "--pids-limit"}
    rest = [
        [pair for pair in itertools.pairwise(line) if pair[0].startswith("--") and pair[0] not in ours]
        for line in (plain, options)
    ]
    assert rest[0][: len(rest[1])] == rest[1]


@pytest.mark.anyio
async def test_only_tenants_that_the_policy_names_have_gpus(scope: Scope, other_scope: Scope, tmp_path: Path) -> None:
    """Nobody by default; who is named has as many as it says; a refusal is recorded; bubblewrap passes none in."""
    async with AuditChain(tmp_path / "audit.db") as chain:
        policy = Policy.read({"gpus": {scope.tenant: 2}})
        sandbox = make_sandbox(
            SandboxSettings(driver="bubblewrap"), limits=policy.sandbox, gpus=policy.gpus, audit=chain
        )
        for who, asked in ((other_scope, 1), (scope, 3), (scope, -1)):
            with pytest.raises(AccessError, match="the policy allows"):
                await sandbox.open(scope=who, gpus=asked)
        with pytest.raises(SandboxError, match="bubblewrap passes no GPU"):
            await sandbox.open(scope=scope, gpus=1)
        with pytest.raises(AccessError):
            await Sandbox(Bubblewrap()).open(scope=scope, gpus=1)
        assert sandbox.ids(scope=scope) == []
        await sandbox.close()
        refused = [entry.detail async for entry in chain.entries(scope.tenant) if entry.kind == "sandbox.refused"]
    assert [(detail["gpus"], detail["allowed"]) for detail in refused] == [(3, 2), (-1, 2)]


@pytest.mark.parametrize(
    ("version", "left"),
    [
        ("1.16.1", {"CVE-2024-0132", "CVE-2025-23359", "CVE-2025-23266", "CVE-2026-24260"}),
        ("1.17.4", {"CVE-2025-23266", "CVE-2026-24260"}),
        ("1.19.0", {"CVE-2026-24260"}),
        ("", {"CVE-2024-0132", "CVE-2025-23359", "CVE-2025-23266", "CVE-2026-24260"}),
    ],
)
def test_the_gpu_toolkit_is_judged_like_a_runtime(version: str, left: set[str]) -> None:
    """By its version, and with every hole where none can be read; it counts for nothing but GPUs."""
    assert {hole.cve for hole in holes(TOOLKIT, version)} == left
    facts = Facts("1", ("runc",), (("runc", "1.3.3", ""), (TOOLKIT, "1.0.0", "")), True, False)
    assert facts.holes("runc") == []


def test_an_image_is_a_digest_and_a_guest_is_never_root() -> None:
    """A tag, which somebody can move, and user 0 are refused."""
    for options in ({"image": "python:3"}, {"image": "aibox-sandbox"}, {"uid": 0}):
        with pytest.raises(ValueError, match=r"digest|root"):
            arguments(Limits(), **options)


def test_the_filter_of_an_engine_lets_nothing_dangerous_through() -> None:
    """What is refused under bubblewrap is not allowed there either, and the default is refusal."""
    assert seccomp.profile()["defaultAction"] == "SCMP_ACT_ERRNO"
    refused = set(seccomp._REFUSED)
    assert profile(refused) == set()
    assert (
        profile({"personality", "shmget", "semget", "msgget", "mq_open", "vmsplice", "iopl", "modify_ldt", "setuid"})
        == set()
    )
    sockets = [rule for rule in seccomp.profile()["syscalls"] if rule["names"] == ["socket"]]
    assert sorted(rule["args"][0]["value"] for rule in sockets) == [1, 2, 10, 16]


@pytest.mark.parametrize(
    ("version", "revision", "named"),
    [
        ("1.1.5+ds1", "1.1.5+ds1-1+deb12u1", {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}),
        ("1.1.5+ds1", "1.1.5+ds1-1", {"CVE-2024-21626", "CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}),
        ("1.1.12", "", {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}),
        ("1.2.7", "", {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}),
        ("1.2.8", "v1.2.8-0-geeb7e60", set()),
        ("1.3.2", "", {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}),
        ("1.3.3", "", set()),
        ("1.4.0-rc.2", "", {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}),
        ("1.4.0", "", set()),
        ("1.5.0", "", set()),
        ("2.0.0", "", set()),
    ],
)
def test_known_ways_out_are_found_by_version(version: str, revision: str, named: set[str]) -> None:
    """Each branch has its own repair, release candidates come before it, and a backport counts by package revision."""
    assert {hole.cve for hole in holes("runc", version, revision)} == named


@pytest.mark.parametrize("version", ["", "unknown", "1.x", "git-1234"])
def test_a_version_that_says_nothing_has_every_hole(version: str) -> None:
    """What cannot be read is not taken for good."""
    assert len(holes("runc", version)) == len([escape for escape in ESCAPES if escape.component == "runc"])


def test_gvisor_is_not_judged_by_runc() -> None:
    """Its guests do not touch runc; containerd counts for both."""
    facts = Facts("1", ("runc", "runsc"), (("runc", "1.0.0", ""), ("containerd", "1.0.0", "")), True, False)
    assert {hole.component for hole in facts.holes("runsc")} == {"containerd"}
    assert {hole.component for hole in facts.holes("runc")} == {"runc", "containerd"}


@pytest.mark.anyio
async def test_without_an_engine_auto_is_bubblewrap(tmp_path: Path, scope: Scope) -> None:
    """The first driver that isolates is taken, and why those before it were not is said."""
    drivers: tuple[Driver, ...] = (Docker(host=f"unix://{tmp_path}/none"), Bubblewrap())
    sandbox = Sandbox(Auto(*drivers))
    health = await sandbox.available()
    assert health.ok
    assert "docker: " in health.detail
    async with sandbox.session(scope=scope) as session:
        assert (await session.python("6 * 7")).value == "42"
    assert repr(sandbox).startswith("Sandbox(bubblewrap")
    await sandbox.close()


@pytest.mark.anyio
async def test_an_engine_that_does_not_answer_is_asked_once_for_all_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten who come at once hear of it together; who comes later has it asked anew."""
    client = tmp_path / "docker"
    client.write_text(f"#!/bin/sh\necho >> {tmp_path}/asked\n/bin/sleep 0.3\necho gone >&2\nexit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    driver, told = Docker(), []

    async def come() -> None:
        with pytest.raises(SandboxError) as error:
            await driver.start(limits=Limits())
        told.append(error.value.message)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(come)
    assert told == ["docker version: gone"] * 10
    assert len((tmp_path / "asked").read_text()) == 1
    await come()
    assert len((tmp_path / "asked").read_text()) == 2
