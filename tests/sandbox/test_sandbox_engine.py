"""What can be said of the docker driver without an engine: its arguments, its filter, and what it refuses."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibox.execution import Limits
from aibox.protocols import Driver
from aibox.sandbox import seccomp
from aibox.sandbox.auto import Auto
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.sandbox.docker import Docker
from aibox.sandbox.engine import Facts
from aibox.sandbox.escapes import ESCAPES, holes
from aibox.sandbox.hardening import hardened
from aibox.sandbox.sandbox import Sandbox
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
