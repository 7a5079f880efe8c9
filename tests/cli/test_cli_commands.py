"""The command line as a person meets it: real processes, exit codes, one-line errors, no traceback."""

from __future__ import annotations

import importlib
import io
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from aibox.box import Box
from aibox.cli.app import COMMANDS
from aibox.cli.demo import Demo, Step
from aibox.inference import demo_model
from aibox.settings import Settings
from aibox.types import Scope

needs_model = pytest.mark.skipif(demo_model.find() is None, reason="the demo model is not installed: make setup")


def aibox(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    options.setdefault("env", {**os.environ, "COLUMNS": "100", "AIBOX_SOVEREIGN": "strict"})
    command = [sys.executable, "-m", "aibox", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload,no-any-return]


def home() -> Path:
    return Path(os.environ["AIBOX_HOME"])


def test_help_names_every_command() -> None:
    """A person who types --help sees what there is and leaves with 0."""
    done = aibox("--help")
    assert done.returncode == 0
    for command in ("demo", "run", "chat", "serve", "verify", "why", "doctor", "models", "new"):
        assert command in done.stdout
        assert aibox(command, "--help").returncode == 0


def test_no_command_offers_a_completion_that_the_whole_does_not() -> None:
    """A group's help lists what the group does: completion can be installed for a whole program only."""
    for name, where in COMMANDS.items():
        module, _, attribute = where.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            offered = {option for param in typer.main.get_command(found).params for option in param.opts}
            assert "--install-completion" not in offered, name


def test_version() -> None:
    """The version is one line, with the name in front."""
    done = aibox("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "aibox")


def test_a_command_loads_what_it_needs_and_no_more() -> None:
    """Who asks for the version, or checks evidence on a machine of its own, waits for no agent and no model."""
    for typed, without in ((["--version"], "aibox.settings"), (["verify", "--help"], "aibox.box")):
        program = f"import sys; from aibox.cli.app import run; run({typed!r}); sys.exit({without!r} in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_mistyped_command_is_told_with_the_one_that_was_meant() -> None:
    """A did-you-mean, of commands that were never loaded too."""
    done = aibox("aduit")
    assert done.returncode == 2
    assert "Did you mean 'audit'?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verify", "nowhere.db"], "nowhere.db"),
        (["why", "nowhere.json"], "nowhere.json"),
        (["run", "hi", "--model", "nowhere.gguf"], "nowhere.gguf"),
        (["run", "hi", "--policy", "lenient.toml"], "lenient.toml"),
        (["run", "hi", "--label", "secret"], "not a label"),
        (["run", ""], "empty"),
        (["run", "x" * 1_000_000], "KiB"),
        (["run", "-"], "empty"),
        (["serve", "--host", "0.0.0.0"], "loopback only"),
        (["nonsense"], "No such command"),
        (["--config", "x"], "No such option"),
        (["run"], "prompt"),
        (["run", "hi", "--receipt"], "requires an argument"),
        (["serve", "--port", "many"], "Invalid value"),
        (["doctor", "--config", "nowhere.toml"], "nowhere.toml"),
    ],
    ids=lambda value: "_".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_mistake_is_told_in_a_line_and_exits_2(arguments: list[str], says: str, tmp_path: Path) -> None:
    """What went wrong, what to do next, no traceback; 2 means that it could not be done."""
    if len(arguments[-1]) > 100_000:
        done = aibox("run", "-", input=arguments[-1], cwd=tmp_path)
    else:
        done = aibox(*arguments, cwd=tmp_path, input="")
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "a defect of aibox" not in done.stderr


def test_input_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    """Bytes that are no text are refused with the place of the first bad one."""
    command = [sys.executable, "-m", "aibox", "run", "-"]
    done = subprocess.run(command, input=b"abc\xff", capture_output=True, timeout=300)
    assert done.returncode == 2
    assert b"not UTF-8: byte 3" in done.stderr


def test_a_file_that_is_not_a_model_is_told(tmp_path: Path) -> None:
    """A wrong file ends in a sentence, not in a crash of native code."""
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"MZ this is not a model")
    done = aibox("run", "hi", "--model", str(fake))
    assert done.returncode == 2
    assert "not a GGUF" in done.stderr


needs_mounts = pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="no mount namespace can be made here",
)


def on_a_small_disk(folder: Path, options: str, *steps: str) -> subprocess.CompletedProcess[str]:
    """Shell steps in a mount namespace of their own, with a disk of its own at `folder`, which is the data folder."""
    folder.mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs {shlex.quote(str(folder))}"
    script = "\n".join(('aibox() { "$PYTHON" -m aibox "$@"; }', mount, *steps))
    env = {**os.environ, "PYTHON": sys.executable, "AIBOX_HOME": str(folder), "AIBOX_SOVEREIGN": "strict"}
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=300, env=env)


@needs_mounts
def test_a_data_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A read-only disk is found before anything is asked of a model, whoever asks."""
    done = on_a_small_disk(tmp_path / "ro", "ro", "aibox run hi")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@needs_model
@needs_mounts
@pytest.mark.parametrize("kib", [40, 100])
def test_a_full_disk_stops_the_turn_and_loses_nothing(kib: int, tmp_path: Path) -> None:
    """Nothing goes unrecorded: the turn stops, in a line. With room again the next works and all of it verifies."""
    full = tmp_path / "small"
    done = on_a_small_disk(
        full,
        "size=20m",
        f"head -c {20 * 1024 - kib}K /dev/zero >{shlex.quote(str(full / 'ballast'))}",
        "aibox run 'Say hello.'; echo first=$?",
        f"rm {shlex.quote(str(full / 'ballast'))}",
        "aibox run 'Say hello.' >/dev/null; echo second=$?",
        f"aibox verify {shlex.quote(str(full / 'audit.db'))}; echo verified=$?",
    )
    assert "first=2" in done.stdout
    assert any(said in done.stderr for said in ("disk is full", "No space left", "disk I/O error")), done.stderr
    assert "second=0" in done.stdout, done.stderr
    assert "verified=0" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_data_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    """A path that cannot be a folder is told as such."""
    (tmp_path / "file").write_text("x")
    done = aibox("run", "hi", env={**os.environ, "AIBOX_HOME": str(tmp_path / "file")})
    assert done.returncode == 2
    assert "data folder" in done.stderr


def test_a_mistyped_variable_is_told() -> None:
    """A setting that does not exist is refused with the one that was meant."""
    done = aibox("doctor", env={**os.environ, "AIBOX_POLCY": "strict"})
    assert done.returncode == 2
    assert "AIBOX_POLICY" in done.stderr


def test_new_makes_a_folder_whose_test_passes(tmp_path: Path) -> None:
    """A newcomer's first test is green before they change anything; an existing folder is left alone."""
    assert aibox("new", "books", cwd=tmp_path).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "books",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert aibox("new", "books", cwd=tmp_path).returncode == 2


def test_doctor_says_what_is_here() -> None:
    """Each part has a line, and the sandbox is tried rather than guessed."""
    done = aibox("doctor")
    assert done.returncode == 0
    for part in ("xllamacpp", "demo model", "data folder", "policy", "sandbox", "seal"):
        assert part in done.stdout


@pytest.mark.loopback
def test_doctor_asks_the_servers_of_this_house_and_nobody_outside(tmp_path: Path) -> None:
    """What does not answer is named with its address, a missing file too; what is outside is not asked."""
    (tmp_path / "key").write_text("k")
    (tmp_path / "aibox.toml").write_text(
        'home = "data"\n[server]\nrates_url = "redis://127.0.0.1:1/0"\n'
        '[[backends]]\nkind = "vllm"\nname = "gpu"\nurl = "http://127.0.0.1:1/v1"\n'
        '[[backends]]\nkind = "openrouter"\nmodels = ["x/y"]\napi_key_file = "key"\n'
        '[[backends]]\nkind = "embedded"\npath = "nowhere.gguf"\n'
    )
    lines = aibox("doctor", cwd=tmp_path, env={**os.environ, "COLUMNS": "300"}).stdout.splitlines()
    said = {line[4:23].strip(): line for line in lines}
    assert said["model: gpu"].startswith("--")
    assert "cannot be reached at http://127.0.0.1:1/v1" in said["model: gpu"]
    assert "outside, and not asked" in said["model: openrouter"]
    assert said["model: embedded"].startswith("--")
    assert "nowhere.gguf" in said["model: embedded"]
    assert said["rates in Redis"].startswith("--")
    assert "127.0.0.1:1/0 does not answer" in said["rates in Redis"]
    assert "GiB" in said["room for evidence"]


def test_doctor_finds_a_policy_that_nothing_could_be_served_under(tmp_path: Path) -> None:
    """A check that is not there is named, with those that are, before a server refuses to start."""
    (tmp_path / "policy.toml").write_text('version = 1\nname = "p"\n[checks.pyi]\ninput = "redact"\n')
    (tmp_path / "aibox.toml").write_text('home = "data"\npolicy = "policy.toml"\n')
    said = " ".join(aibox("doctor", cwd=tmp_path).stdout.split())
    assert "pyi" in said
    assert "known are" in said


@needs_model
def test_the_demo_holds_offline_and_its_evidence_verifies() -> None:
    """All five promises hold with every outside connection refused, and the chain it leaves holds too."""
    done = aibox("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 hold" in done.stdout
    assert "FAILS" not in done.stdout
    assert aibox("verify", str(home() / "audit.db")).returncode == 0


@pytest.mark.anyio
@pytest.mark.parametrize("kept", ["beside", "named", "in a database"])
async def test_the_demo_looks_at_the_evidence_where_the_settings_keep_it(
    kept: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In a file of the data folder, by its usual name or another, or in PostgreSQL, where nothing is flipped."""
    more: dict[str, Any] = {"named": {"audit": {"url": "log.db"}}, "beside": {}}.get(kept) or {}
    if kept == "in a database":
        more = {"database": request.getfixturevalue("postgres_url")}
    step, shown = Step("evidence"), io.StringIO()
    async with Box(Settings(home=tmp_path / "home", **more)) as box:
        for number in range(3):
            await box.audit.append("tool.called", scope=Scope.local(), detail={"tool": f"t{number}"})
        await Demo(Console(file=shown), box, model="none", seed=1).evidence(step)
    assert step.holds
    rows = dict(step.rows)
    assert "3 entries" in str(rows["the chain"])
    assert ("inside entry" in str(rows["one byte flipped"])) == (kept != "in a database")
    assert "writer@" not in str(rows["look yourself"])


@needs_model
@pytest.mark.skipif(not Path("/proc/self/ns/net").exists(), reason="network namespaces are Linux's")
def test_the_demo_holds_with_no_network_at_all() -> None:
    """In a network namespace with nothing but loopback, it passes as well."""
    inside = f'ip link set lo up 2>/dev/null || "$0" -c \'{_LOOPBACK_UP}\'; exec "$0" -m aibox demo'
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", inside, sys.executable], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 hold" in done.stdout


# What `ip link set lo up` does, for systems without iproute2: SIOCSIFFLAGS with IFF_UP | IFF_RUNNING.
_LOOPBACK_UP = (
    "import fcntl, socket, struct; "
    's = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x41))'
)


@needs_model
def test_run_answers_and_its_receipt_explains_itself(tmp_path: Path) -> None:
    """One question, an answer on standard output, a receipt that `why` puts into sentences."""
    done = aibox("run", "My name is Maria Keller. Say hello.", "--receipt", str(tmp_path / "r.json"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    why = aibox("why", str(tmp_path / "r.json"))
    assert why.returncode == 0, why.stderr
    assert "replaced what was found" in why.stdout
    assert "weights were verified" in why.stdout
    assert "Maria" not in why.stdout


@needs_model
def test_a_receipt_that_was_changed_is_refused(tmp_path: Path) -> None:
    """`why` and `verify` both notice, and say no with 1."""
    aibox("run", "Say hello.", "--receipt", str(tmp_path / "r.json"))
    text = (tmp_path / "r.json").read_text()
    assert "turn.sealed" in text
    (tmp_path / "r.json").write_text(text.replace("turn.sealed", "turn.Sealed"))
    assert aibox("why", str(tmp_path / "r.json")).returncode == 1
    assert aibox("verify", str(tmp_path / "r.json")).returncode == 1


@needs_model
def test_broken_evidence_exits_1_and_names_the_entry() -> None:
    """A changed row is found, with its number, also as JSON."""
    aibox("run", "Say hello.")
    database = sqlite3.connect(home() / "audit.db")
    database.executescript("DROP TRIGGER IF EXISTS entries_update; DROP TRIGGER IF EXISTS entries_no_update;")
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {name}")
    database.execute("UPDATE entries SET open = replace(open, '\"v\"', '\"w\"') WHERE seq = 1")
    database.execute("UPDATE entries SET open = CAST(open AS BLOB) WHERE seq = 1")
    database.commit()
    database.close()
    done = aibox("verify", str(home() / "audit.db"))
    assert done.returncode == 1
    assert "entry 1" in done.stdout
    report = json.loads(aibox("verify", str(home() / "audit.db"), "--json").stdout)
    assert report["ok"] is False


@needs_model
def test_chat_keeps_a_session_and_commands_work() -> None:
    """Lines in, answers out; an unknown command and a failed turn do not end it."""
    lines = "/help\n/nonsense\nRemember that the inspection is on 14 March.\n/memory\n/forget\n/memory\n/quit\n"
    done = aibox("chat", input=lines)
    assert done.returncode == 0, done.stderr
    assert "/receipt FILE" in done.stderr
    assert "there is no command /nonsense" in done.stderr
    assert "14 March" in done.stderr
    assert "nothing is remembered" in done.stderr


@needs_model
def test_two_processes_share_a_data_folder() -> None:
    """Two at once, on one folder: both answer, and there is one history that verifies."""
    command = [sys.executable, "-m", "aibox", "run", "Say hello."]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out.strip()
    assert aibox("verify", str(home() / "audit.db")).returncode == 0


def heeding_ctrl_c() -> None:
    """Tests that were started in the background of a script have SIGINT ignored, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@needs_model
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopping_in_the_middle_of_a_turn_loses_nothing(how: signal.Signals) -> None:
    """Killed or interrupted while the model writes: the evidence verifies and the next start works."""
    command = [sys.executable, "-m", "aibox", "run", "Write a very long story about a lighthouse."]
    for _ in range(10):
        process = subprocess.Popen(  # unbuffered: `communicate` does not return what `read` has read ahead
            command,
            bufsize=0,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=heeding_ctrl_c,  # noqa: PLW1509 - sets one handler
        )
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(how)
        told, err = process.communicate(timeout=300)
        if not told.endswith(b"\n"):
            break  # a small model's story may be over before it is stopped; then it tells another
    assert process.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130)
    assert b"Traceback" not in err
    assert aibox("verify", str(home() / "audit.db")).returncode in ((0, 2) if how is signal.SIGKILL else (0,))
    again = aibox("run", "Say hello.")
    assert again.returncode == 0, again.stderr
    assert aibox("verify", str(home() / "audit.db")).returncode == 0
