"""An exported log carries its own verifier, which reaches aibox's verdict on it, whole or tampered with."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from audit_parts import ACME, sealed_turns
from audit_pen import BROKEN, NAME, OTHER, SIGNER, Pen, broken_log, good_log
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aibox.audit import kinds
from aibox.audit.chain import AuditChain
from aibox.audit.checkpoint import Checkpoint
from aibox.audit.merkle import root
from aibox.audit.record import KEY, Header, Row, body_commit, leaf_hash
from aibox.audit.signer import KeySigner, public_key, sign
from aibox.audit.verify import verify
from aibox.errors import ConfigError, IntegrityError
from aibox.types import Scope

OFFLINE = Path(__file__).parents[2] / "aibox" / "audit" / "offline"


def load_tool() -> ModuleType:
    """Both files of the verifier, as a script in their folder has them."""
    for name in ("verify_receipt", "verify_bundle"):
        spec = importlib.util.spec_from_file_location(name, OFFLINE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


tool = load_tool()
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A log with every act in it, exported, and the two keys that it was signed under."""
    folder = tmp_path_factory.mktemp("made")

    async def make() -> None:
        async with AuditChain(folder / "audit.db") as chain:
            await sealed_turns(chain, ACME, 2)
            await chain.append("tool.called", scope=Scope(tenant="acme", user="tom"), detail={"text": "é\u2028"})
            await chain.rotate()
            await chain.prune(scope=ACME, before_us=2**62, reason="age")
            await chain.append("tool.called", scope=Scope(tenant="acme", user="tom"), detail={})
            await chain.hold(scope=ACME, subject="tom", reason="case 7")
            await chain.erase(scope=ACME, subject="eva", reason="art. 17")
            assert await chain.export("acme", folder / "log.zip") == 12

    asyncio.run(make())
    return folder, [(folder / "keys" / name).read_text() for name in ("retired-1.pub", "log.pub")]


def both(path: Path, key: str | None = None) -> int:
    """The one verdict of both verifiers."""
    try:
        verify(path, key=key)
        ours = 0
    except IntegrityError:
        ours = 1
    except ConfigError:
        ours = 2
    arguments = [str(path)]
    if key is not None:
        pin = path.with_suffix(".pub")
        pin.write_text(key)
        arguments.append(str(pin))
    assert tool.main(arguments) == ours
    return ours


def read(path: Path) -> tuple[dict[str, Any], Lines, str]:
    with zipfile.ZipFile(path) as bundle:
        lines = [json.loads(line) for line in bundle.read("entries.jsonl").splitlines()]
        return json.loads(bundle.read("log.json")), lines, bundle.read("checkpoint").decode()


def write(path: Path, about: Any, lines: Sequence[Any], note: str | bytes) -> Path:
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("log.json", json.dumps(about))
        bundle.writestr("entries.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        bundle.writestr("checkpoint", note)
    return path


def signed(path: Path, rows: Sequence[Row], signer: KeySigner = SIGNER, **about: Any) -> Path:
    """A bundle of rows as whoever holds the signing key can make one."""
    values = [
        {
            "header": base64.b64encode(row.header).decode(),
            "open": None if row.open is None else row.open.decode(),
            "sealed": None if row.sealed is None else base64.b64encode(row.sealed).decode(),
            "tag": base64.b64encode(row.tag).decode(),
        }
        for row in rows
    ]
    about = {
        "format": "aibox/bundle/v1", "tenant": NAME.tenant, "origin": NAME.origin, "public_key": NAME.public_key,
        **about,
    }  # fmt: skip
    point = Checkpoint(NAME.origin, len(rows), root([leaf_hash(row.header) for row in rows]))
    return write(path, about, values, sign(signer, point))


def test_an_export_holds_in_both_under_every_key_of_its_line(made: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Without a key, with the one in force and with the one before it; not under one that it never had."""
    folder, keys = made
    path = Path(shutil.copy(folder / "log.zip", tmp_path))
    for key in (None, *keys):
        assert both(path, key) == 0
    assert both(path, public_key(OTHER)) == 1
    assert both(path, "no key") == 2
    report = verify(path, key=keys[0])
    assert (report.entries, report.pruned, report.pinned) == (12, 7, True)


def test_an_export_needs_nothing_but_itself(made: tuple[Path, list[str]], tmp_path: Path) -> None:
    """`python log.zip log.pub` with aibox out of reach; the scripts beside it do the same; exit codes as documented."""
    folder, keys = made
    shutil.copy(folder / "log.zip", tmp_path)
    (tmp_path / "log.pub").write_text(keys[1])
    (tmp_path / "bad.pub").write_text("x")
    for script in OFFLINE.glob("*.py"):
        shutil.copy(script, tmp_path)
    hide = (
        "import sys, runpy; sys.modules['aibox'] = None; sys.argv.pop(0); runpy.run_path(sys.argv[0], {}, '__main__')"
    )
    for arguments, code, says in (
        (["log.zip", "log.pub"], 0, "holds: 12 entries of tenant acme"),
        (["log.zip"], 0, "give log.pub"),
        (["log.zip", "bad.pub"], 2, "the key cannot be read"),
        (["verify_bundle.py", "log.zip", "log.pub"], 0, "7 bodies removed"),
        (["verify_bundle.py", "nowhere.zip"], 2, "cannot be read"),
        (["verify_bundle.py"], 2, "Exit code"),
    ):
        isolated = [] if arguments[0].endswith(".py") else ["-I"]
        command = [sys.executable, *isolated, "-c", hide, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, says in done.stdout) == (code, True), done.stdout + done.stderr
    done = subprocess.run([sys.executable, "-I", "log.zip", "log.pub"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["verify_receipt.py", "verify_bundle.py"])
def test_the_tools_are_the_files_that_go_along(name: str, made: tuple[Path, list[str]]) -> None:
    """What lies in tools/ is what an export carries, byte for byte."""
    with zipfile.ZipFile(made[0] / "log.zip") as bundle:
        carried = bundle.read("__main__.py" if name == "verify_bundle.py" else name)
    assert (OFFLINE.parents[2] / "tools" / name).read_bytes() == carried


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_is_held_by_both(rule: str, tmp_path: Path) -> None:
    """Whoever holds every key breaks one rule and signs the result: neither verifier takes it."""
    pen, _ = broken_log(rule)
    assert both(signed(tmp_path / "x.zip", pen.rows)) == 1


def test_a_log_that_keeps_every_rule_holds_in_both(tmp_path: Path) -> None:
    """A ratchet, a rotation, an erasure, a pruning and a restoration in one log; under the new key, not the old."""
    rows = good_log().rows
    for seq in (0, 2):
        rows[seq] = rows[seq]._replace(open=None, sealed=None)
    assert both(signed(tmp_path / "x.zip", rows, OTHER)) == 0
    assert both(signed(tmp_path / "x.zip", rows, OTHER), public_key(SIGNER)) == 0
    assert both(signed(tmp_path / "x.zip", rows)) == 1
    assert both(signed(tmp_path / "x.zip", rows[:3])) == 1  # bodies are missing, and nothing says why yet
    kept = good_log().rows
    assert both(signed(tmp_path / "x.zip", kept, OTHER)) == 1
    assert both(signed(tmp_path / "x.zip", kept[:4], OTHER)) == 1
    assert both(signed(tmp_path / "x.zip", kept[:4])) == 0


CHANGES: dict[str, Callable[[list[Row]], object]] = {
    "tag": lambda rows: rows.__setitem__(0, rows[0]._replace(tag=b"x")),
    "header length": lambda rows: rows.__setitem__(0, rows[0]._replace(header=rows[0].header + b"\0")),
    "half a body": lambda rows: rows.__setitem__(0, rows[0]._replace(sealed=b"x" * 80)),
    "an act without a body": lambda rows: rows.__setitem__(1, rows[1]._replace(open=None, sealed=None)),
    "an erasure without a body": lambda rows: rows.__setitem__(4, rows[4]._replace(open=None, sealed=None)),
    "magic": lambda rows: rows.__setitem__(7, rows[7]._replace(header=b"AIBY" + rows[7].header[4:])),
    "version": lambda rows: rows.__setitem__(7, rows[7]._replace(header=b"AIBX\2" + rows[7].header[5:])),
    "flags": lambda rows: rows.__setitem__(7, rows[7]._replace(header=b"AIBX\1\x42" + rows[7].header[6:])),
    "order": lambda rows: rows.reverse(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_was_changed_and_signed_is_refused_by_both(change: str, tmp_path: Path) -> None:
    """The checkpoint is signed over the changed rows, so nothing but the row itself can tell."""
    rows = good_log().rows
    for seq in (0, 2):
        rows[seq] = rows[seq]._replace(open=None, sealed=None)
    CHANGES[change](rows)
    assert both(signed(tmp_path / "x.zip", rows, OTHER)) == 1


BODIES = {
    b'{"action":"a","detail":{"x":1},"id":"","tenant":"acme","turn_id":"","v":1}': 0,
    b'{"action":"a","detail":{"x":1.0},"id":"","tenant":"acme","turn_id":"","v":1}': 1,
    b'{"action":"a","detail":{"x":1,"x":1},"id":"","tenant":"acme","turn_id":"","v":1}': 1,
    b'{"action":"a","detail":[],"id":"","tenant":"acme","turn_id":"","v":1}': 1,
    b'{"action":"a","detail":{},"id":"","tenant":"acme","turn_id":"","v":2}': 1,
    b'{"action":"a","detail":{},"id":"","tenant":"other","turn_id":"","v":1}': 1,
    b'{"action":"a","detail":{},"id":7,"tenant":"acme","turn_id":"","v":1}': 1,
}


@pytest.mark.parametrize("body", BODIES)
def test_a_body_in_another_form_is_refused_by_both(body: bytes, tmp_path: Path) -> None:
    """A body that reads in two ways, or under another schema, in a log that is signed as it is."""
    pen = Pen()
    pen.write("a.b", shown=body, hidden=b"")
    assert both(signed(tmp_path / "x.zip", pen.rows)) == BODIES[body]


ACTS: dict[str, tuple[str, dict[str, Any]]] = {
    "an erasure of nobody": (kinds.ERASED, {}),
    "an erasure of a name": (kinds.ERASED, {"subjects": ["eva"]}),
    "a pruning of nothing": (kinds.PRUNED, {"first": 0, "last": 0}),
    "a pruning in words": (kinds.PRUNED, {"first": 0, "last": 0, "bits": "all"}),
    "a restoration without sizes": (kinds.RESTORED, {}),
    "a restoration in words": (kinds.RESTORED, {"size": "all", "lost_size": 2}),
}


@pytest.mark.parametrize("act", ACTS)
def test_an_act_that_does_not_say_what_it_does_is_refused_by_both(act: str, tmp_path: Path) -> None:
    """Its flags, links and tags are right; its detail is not of its kind."""
    pen = Pen()
    pen.write()
    pen.write(*ACTS[act])
    assert both(signed(tmp_path / "x.zip", pen.rows)) == 1


def test_what_may_be_missing_is_what_an_act_names_and_no_act(tmp_path: Path) -> None:
    """Attack: an act says that a tombstone, less than it bounds, or what comes after it was removed; and it is gone."""
    for kind, detail, said, gone in (
        (kinds.ERASED, {"subjects": []}, {"first": 1, "last": 1, "bits": "01"}, [1]),
        ("tool.called", {}, {"first": 0, "last": 1, "bits": "01"}, [0]),
        ("tool.called", {}, {"first": 0, "last": 3, "bits": "09"}, [0, 3]),
    ):
        pen = Pen()
        pen.write()
        pen.write(kind, detail)
        pen.write(kinds.PRUNED, said)
        pen.write()
        for seq in gone:
            pen.rows[seq] = pen.rows[seq]._replace(open=None, sealed=None)
        assert both(signed(tmp_path / "x.zip", pen.rows)) == 1


def test_a_key_that_was_never_in_use_hands_over_to_itself(tmp_path: Path) -> None:
    """Attack: a stranger's key signs a rotation in the log, and the checkpoint after it."""
    assert both(signed(tmp_path / "x.zip", broken_log("rotation from another")[0].rows, OTHER)) == 1


def test_what_was_signed_elsewhere_is_no_checkpoint_of_it(tmp_path: Path) -> None:
    """A checkpoint of another size, root, origin or key; and a log under another name than its entries'."""
    pen = Pen()
    pen.write()
    pen.write()
    good = signed(tmp_path / "x.zip", pen.rows)
    about, lines, note = read(good)
    assert both(good) == 0
    leaves = root([leaf_hash(row.header) for row in pen.rows])
    for point in (
        Checkpoint("o", 3, leaves), Checkpoint("o", 1, leaf_hash(pen.rows[0].header)), Checkpoint("p", 2, leaves),
        Checkpoint("o", 2, bytes(32)),
    ):  # fmt: skip
        assert both(write(tmp_path / "x.zip", about, lines, sign(SIGNER, point))) == 1
    for changed in ({"origin": "p"}, {"tenant": "rival"}, {"public_key": public_key(OTHER)}, {"public_key": "x"}):
        assert both(write(tmp_path / "x.zip", {**about, **changed}, lines, note)) == 1
    assert both(write(tmp_path / "x.zip", about, lines[:1], note)) == 1
    assert both(write(tmp_path / "x.zip", about, [], note)) == 1


@pytest.mark.parametrize("broken", [None, [], {"format": "x"}, {"v": 1}, "x", 1])
def test_what_is_no_export_is_unreadable_to_both(broken: Any, tmp_path: Path) -> None:
    """Exit code 2 and no traceback: no ZIP, files that lack or come twice, lines that are no entries."""
    pen = Pen()
    pen.write()
    about, lines, note = read(signed(tmp_path / "x.zip", pen.rows))
    assert both(write(tmp_path / "x.zip", broken, lines, note)) == 2
    assert both(write(tmp_path / "x.zip", {**about, "tenant": broken if broken != "x" else 1}, lines, note)) == 2
    assert both(write(tmp_path / "x.zip", about, [broken], note)) == 2
    assert both(write(tmp_path / "x.zip", about, [{**lines[0], "x": broken}], note)) == 2
    assert both(write(tmp_path / "x.zip", {**about, "x": ""}, lines, note)) == 2
    assert both(write(tmp_path / "x.zip", {**about, "format": "x"}, lines, note)) == 2
    assert both(write(tmp_path / "x.zip", about, lines, b"\xff")) == 2
    assert both(write(tmp_path / "x.zip", about, lines, "x" * 70_000)) == 2
    assert both(write(tmp_path / "x.zip", about, lines, note)) == 0
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "x.zip", "a") as bundle:
        bundle.writestr("checkpoint", note)
    assert both(tmp_path / "x.zip") == 2
    for data in (b"", b"PK", b"x" * 100):
        (tmp_path / "x.zip").write_bytes(data)
        assert both(tmp_path / "x.zip") == 2
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        bundle.writestr("checkpoint", note)
    assert both(tmp_path / "x.zip") == 2


VALUES = st.sampled_from(["", "AA==", "AB==", "{}", "\ud800", None, 1, True, [], {}])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_whatever_is_changed_both_say_the_same(
    made: tuple[Path, list[str]], tmp_path: Path, data: st.DataObject
) -> None:
    """A value exchanged, a character changed, a line removed, doubled, moved: one verdict, and it is not `holds`."""
    about, lines, note = read(made[0] / "log.zip")
    at = data.draw(st.integers(0, len(lines) - 1))
    act = data.draw(st.sampled_from(["value", "flip", "remove", "double", "move", "cut"]))
    if act == "value":
        field = data.draw(st.sampled_from(sorted(lines[at])))
        value = data.draw(VALUES.filter(lambda value: value != lines[at][field]))
        lines[at][field] = value
    elif act == "flip":
        fields = sorted(name for name, text in lines[at].items() if text)
        field = data.draw(st.sampled_from(fields))
        text = lines[at][field]
        where = data.draw(st.integers(0, len(text) - 1))
        lines[at][field] = (
            text[:where] + chr(ord(text[where]) ^ data.draw(st.sampled_from([1, 2, 32]))) + text[where + 1 :]
        )
    elif act == "remove":
        del lines[at]
    elif act == "double":
        lines.insert(at, lines[at])
    elif act == "move":
        lines.insert(data.draw(st.integers(0, len(lines) - 2).filter(lambda to: to != at)), lines.pop(at))
    else:
        lines = lines[:at]
    verdict = both(write(tmp_path / "x.zip", about, lines, note), data.draw(st.sampled_from([None, *made[1]])))
    # Nothing commits to the tags of an epoch before it ends: without its key they are taken as they are.
    assert verdict != 0 or _core(lines) == _core(read(made[0] / "log.zip")[1])


def _core(lines: Lines) -> Lines:
    last = max((n for n, line in enumerate(lines) if b64(line["header"])[5] & KEY), default=-1)
    return [
        {**line, "sealed": line["sealed"] or None, "tag": line["tag"] if n < last else len(b64(line["tag"]))}
        for n, line in enumerate(lines)
    ]


def b64(text: Any) -> bytes:
    return base64.b64decode(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(where=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_bit_of_the_file_is_turned(made: tuple[Path, list[str]], tmp_path: Path, where: int, bit: int) -> None:
    """Wherever it lies, in an entry or in the ZIP around it, both say the same."""
    raw = bytearray((made[0] / "log.zip").read_bytes())
    raw[where % len(raw)] ^= 1 << bit
    (tmp_path / "x.zip").write_bytes(raw)
    both(tmp_path / "x.zip", made[1][1])


def test_a_log_goes_on_and_is_held_against_its_export(made: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The checkpoint of an export is one from elsewhere for the log, and another one is one for the export."""
    folder, keys = made
    _, _, note = read(folder / "log.zip")
    shutil.copytree(folder, tmp_path / "on")

    async def go_on() -> str:
        async with AuditChain(tmp_path / "on" / "audit.db") as chain:
            await chain.append("tool.called", scope=ACME, detail={})
            later = await chain.checkpoint("acme")
            assert await chain.export("acme", tmp_path / "later.zip") == 13
            with pytest.raises(ConfigError, match="there already"):
                await chain.export("acme", tmp_path / "later.zip")
            with pytest.raises(ConfigError, match="no log of nobody"):
                await chain.export("nobody", tmp_path / "nobody.zip")
            return later

    later = asyncio.run(go_on())
    assert verify(tmp_path / "on" / "audit.db", checkpoints=[note]).outside == 1
    assert verify(tmp_path / "later.zip", key=keys[1], checkpoints=[note]).outside == 1
    with pytest.raises(IntegrityError, match="a checkpoint from elsewhere"):
        verify(folder / "log.zip", checkpoints=[later])


def test_a_header_that_commits_to_nothing(tmp_path: Path) -> None:
    """An entry whose body is gone is held by its header alone, and its sealed part may not stay behind."""
    pen = Pen()
    pen.write()
    header = Header.unpack(pen.rows[0].header)._replace(body_commit=body_commit(b"", b"")).pack()
    pen.rows[0] = pen.rows[0]._replace(header=header, open=None, sealed=b"")
    assert both(signed(tmp_path / "x.zip", pen.rows)) == 1
