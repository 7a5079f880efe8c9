"""The verifier of one file reaches the verdict that aibox reaches, and the command line does what its page says."""

from __future__ import annotations

import asyncio
import base64
import copy
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from audit_parts import ACME, by_hand, sealed_turns, write_log
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aibox.audit import receipt as receipt_module
from aibox.audit.chain import AuditChain
from aibox.audit.checkpoint import Checkpoint, key_id
from aibox.audit.merkle import node_hash
from aibox.audit.receipt import Receipt
from aibox.audit.record import SEALED, TERMINAL, Header, body_commit, leaf_hash, log_id
from aibox.audit.signer import KeySigner, public_key, sign
from aibox.cli.app import run
from aibox.errors import ConfigError, IntegrityError

TOOL = (Path(__file__).parents[2] / "tools" / "verify_receipt.py").resolve()


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_receipt", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """A receipt from after a rotation, and the keys that lead to it."""
    folder = tmp_path_factory.mktemp("made")

    async def make() -> Receipt:
        async with AuditChain(folder / "audit.db") as chain:
            await sealed_turns(chain, ACME, 2)
            await chain.rotate()
            chain.note("tool.called", scope=ACME, turn="t", detail={"tool": "owed", "text": "é\n\u2028"})
            return await chain.seal("t", scope=ACME, detail={"outcome": "completed"})

    receipt = asyncio.run(make())
    keys = [(folder / "keys" / name).read_text() for name in ("retired-1.pub", "log.pub")]
    return folder, receipt.as_dict(), keys


def both(value: Any, folder: Path, key: str | None = None) -> int:
    """The one verdict of both verifiers."""
    path, pin = folder / "r.json", folder / "pin.pub"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    arguments = [str(path)]
    if key is not None:
        pin.write_text(key)
        arguments.append(str(pin))
    try:
        Receipt.load(path).verify(key)
        ours = 0
    except IntegrityError:
        ours = 1
    except ConfigError:
        ours = 2
    assert tool.main(arguments) == ours
    return ours


def test_a_good_receipt_holds_in_both_under_every_key_that_leads_to_it(
    made: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    """Without a key, with the key in force and with the one before it; with its keys taken out as well."""
    _, value, keys = made
    for key in (None, *keys):
        assert both(value, tmp_path, key) == 0
    for entry in value["entries"]:
        assert entry["key"]
    narrow = copy.deepcopy(value)
    for entry in narrow["entries"]:
        entry["key"] = ""
    assert both(narrow, tmp_path, keys[1]) == 0


STRINGS = st.sampled_from(["", "x", "\x00", "\ud800", "AA==", "AB==", "[]", '{"v":1}', "9" * 30])
VALUES = STRINGS | st.integers() | st.none() | st.booleans() | st.just([]) | st.just({}) | st.just(1.5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_whatever_is_changed_both_say_the_same(
    made: tuple[Path, dict[str, Any], list[str]], tmp_path: Path, data: st.DataObject
) -> None:
    """A value exchanged, a bit turned, an item removed or doubled anywhere: one verdict, and it is not `holds`."""
    _, original, keys = made
    value = copy.deepcopy(original)
    at: Any = value
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
            at = at[key]
            continue
        break
    before = at[key]
    act = data.draw(st.sampled_from(["value", "flip", "remove", "double"]))
    if act == "flip" and isinstance(before, str) and before:
        where = data.draw(st.integers(0, len(before) - 1))
        at[key] = (
            before[:where] + chr(ord(before[where]) ^ data.draw(st.sampled_from([1, 2, 32]))) + before[where + 1 :]
        )
    elif act == "remove":
        del at[key]
    elif act == "double" and isinstance(at, list):
        at.insert(key, before)
    else:
        at[key] = data.draw(VALUES)
    pin = data.draw(st.sampled_from([None, *keys]))
    verdict = both(value, tmp_path, pin)
    # Keys of sealed parts may be taken out; a rotation counts only for who holds an older key.
    assert verdict != 0 or _core(value) == _core(original)


def _core(value: dict[str, Any]) -> dict[str, Any]:
    entries = [{name: part for name, part in entry.items() if name != "key"} for entry in value["entries"]]
    return {**value, "rotations": [], "entries": entries}


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b"null", b"1"])
def test_what_is_no_receipt_is_unreadable_to_both(data: bytes, tmp_path: Path) -> None:
    """Exit code 2, and no traceback."""
    assert both(data, tmp_path) == 2


@pytest.mark.parametrize("proof", [{}, "", None, 0])
def test_a_proof_that_is_no_list_is_unreadable_to_both(
    made: tuple[Path, dict[str, Any], list[str]], tmp_path: Path, proof: Any
) -> None:
    """Also one that is as empty as the list which the only entry of a log has."""
    value = copy.deepcopy(made[1])
    value["entries"][0]["proof"] = proof
    assert both(value, tmp_path) == 2


def test_the_file_runs_alone(made: tuple[Path, dict[str, Any], list[str]], tmp_path: Path) -> None:
    """Isolated from the environment, from another folder, with aibox out of reach; the exit codes are as documented."""
    folder, value, _ = made
    shutil.copy(TOOL, tmp_path / "v.py")
    (tmp_path / "r.json").write_text(json.dumps(value))
    hide = (
        "import sys, runpy; sys.modules['aibox'] = None; sys.argv.pop(0); runpy.run_path(sys.argv[0], {}, '__main__')"
    )
    for arguments, code, says in (
        (["r.json", str(folder / "keys" / "log.pub")], 0, "holds: turn t of tenant acme"),
        (["r.json"], 0, "give log.pub"),
        (["nowhere.json"], 2, "cannot be read"),
        ([], 2, "Exit code"),
    ):
        command = [sys.executable, "-I", "-c", hide, "v.py", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert (done.returncode, says in done.stdout) == (code, True), done.stdout + done.stderr


@pytest.mark.parametrize("part", ["open", "sealed", "key", "header"])
def test_a_changed_part_is_told_with_a_reason(
    made: tuple[Path, dict[str, Any], list[str]], tmp_path: Path, part: str
) -> None:
    """Both refuse an entry whose open part, sealed part, key or header was exchanged for another's."""
    value = copy.deepcopy(made[1])
    value["entries"][0][part] = value["entries"][1][part]
    assert both(value, tmp_path) == 1


def test_a_body_in_another_form_is_refused_by_both(
    made: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    """Attack: whoever signs a log of their own puts a body into it that reads in two ways; neither takes it."""
    signer = KeySigner("mine", Ed25519PrivateKey.generate())
    bodies = {
        b'{"action":"a","detail":{"entries":[]},"id":"","tenant":"t","turn_id":"t","v":1}': 0,
        b'{"action":"a","action":"a","detail":{"entries":[]},"id":"","tenant":"t","turn_id":"t","v":1}': 1,
        b'{"action":"a","detail":{"entries":[],"entries":[]},"id":"","tenant":"t","turn_id":"t","v":1}': 1,
        b'{"action":"a","detail":{"entries":[],"x":1.0},"id":"","tenant":"t","turn_id":"t","v":1}': 1,
        b'{"action":"a","detail":{"entries":[],"x":9007199254740992},"id":"","tenant":"t","turn_id":"t","v":1}': 1,
        b'{"action":"a","detail":{"entries":[], "x":1},"id":"","tenant":"t","turn_id":"t","v":1}': 1,
        '{"action":"a","detail":{"entries":[],"é":1},"id":"","tenant":"t","turn_id":"t","v":1}'.encode(): 1,
        b'{"action":"a","detail":[],"id":"","tenant":"t","turn_id":"t","v":1}': 1,
        b'{"action":"a","detail":{"entries":[]},"id":1,"tenant":"t","turn_id":"t","v":1}': 1,
        b'{"action":"a","detail":{"entries":[]},"id":"","tenant":"t","turn_id":"t","v":2}': 1,
        b'{"action":"a","detail":{"entries":[]},"id":"","tenant":"t","turn_id":"t","v":1,"w":1}': 1,
        b'{"action":"a","detail":{"entries":[[1,"x"]]},"id":"","tenant":"t","turn_id":"t","v":1}': 1,
    }
    for body, verdict in bodies.items():
        header = Header(TERMINAL, 0, 0, 0, log_id("o"), bytes(32), body_commit(body, b"")).pack()
        entry = {
            "header": base64.b64encode(header).decode(),
            "open": body.decode(),
            "sealed": "",
            "key": "",
            "proof": [],
        }
        value = {
            "format": "aibox/receipt/v1", "turn": "t", "tenant": "t", "public_key": public_key(signer), "rotations": [],
            "checkpoint": sign(signer, Checkpoint("o", 1, leaf_hash(header))), "entries": [entry],
        }  # fmt: skip
        assert both(value, tmp_path) == verdict, body


def test_a_receipt_of_another_making(tmp_path: Path) -> None:
    """Attack: a log of one's own is tied to a trusted key by a rotation that it never signed, or flags do not fit."""
    from aibox.audit.rotation import statement

    trusted, mine = (KeySigner("aibox", Ed25519PrivateKey.generate()) for _ in range(2))
    body = b'{"action":"a","detail":{"entries":[]},"id":"","tenant":"t","turn_id":"t","v":1}'

    def receipt(flags: int, hidden: bytes, *rotations: dict[str, Any]) -> dict[str, Any]:
        header = Header(flags, 0, 0, 0, log_id("o"), bytes(32), body_commit(body, hidden)).pack()
        entry = {"header": header, "sealed": hidden, "key": b""}
        texts = {name: base64.b64encode(part).decode() for name, part in entry.items()}
        return {
            "format": "aibox/receipt/v1", "turn": "t", "tenant": "t", "public_key": public_key(mine),
            "rotations": list(rotations), "checkpoint": sign(mine, Checkpoint("o", 1, leaf_hash(header))),
            "entries": [{**texts, "open": body.decode(), "proof": []}],
        }  # fmt: skip

    old, new = public_key(trusted), public_key(mine)
    text = statement(log_id("o"), old, new, 1)
    step = {"old": old, "new": new, "until": 1}
    assert both(receipt(TERMINAL, b""), tmp_path, new) == 0
    assert both(receipt(TERMINAL, b""), tmp_path, old) == 1
    assert both(receipt(TERMINAL, b"", {**step, "signature": trusted.sign_bytes(text).hex()}), tmp_path, old) == 0
    for signature in (mine.sign_bytes(text).hex(), "00" * 64, "", 7, None):
        assert both(receipt(TERMINAL, b"", {**step, "signature": signature}), tmp_path, old) == 1
    for until in ("1", None, 1.0, True, 2):
        rotation = {**step, "until": until, "signature": trusted.sign_bytes(text).hex()}
        assert both(receipt(TERMINAL, b"", rotation), tmp_path, old) == 1
    assert both(receipt(TERMINAL | SEALED, b""), tmp_path) == 1
    assert both(receipt(TERMINAL, b"x" * 80), tmp_path) == 1
    assert both(receipt(TERMINAL | SEALED, b"x" * 80), tmp_path) == 0
    assert both(receipt(0, b""), tmp_path) == 1


# What whoever holds the signing key could make: one rule is broken, and the checkpoint is signed over the result.

MINE, THEIRS = (KeySigner("aibox", Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n in (1, 2))
END = b'{"action":"a","detail":{"entries":[]},"id":"","tenant":"t","turn_id":"t","v":1}'
PRIVATE = b'{"actor":{"agent":"","session":"","user":"eva"},"detail":{}}'


def hidden(private: bytes = PRIVATE, key: bytes = bytes(32), commitment: bytes | None = None) -> dict[str, Any]:
    commitment = commitment or hashlib.sha256(b"aibox/entry-key/v1\x00" + key).digest()
    text = AESGCM(key).encrypt(bytes(12), private, None)
    return {"flags": TERMINAL | SEALED, "hidden": bytes(32) + commitment + text, "key": key}


def forged(
    *, flags: int = TERMINAL, hidden: bytes = b"", key: bytes = b"", seq: int = 0, log: str = "o", head: bytes = b"",
    tail: bytes = b"", proof: tuple[bytes, ...] = (), size: int = 1, over: Callable[[bytes], bytes] = bytes,
    note: Callable[[str], str] = str, text: str | None = None, origin: str = "o", public: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    header = Header(flags, 0, seq, 0, log_id(log), bytes(32), body_commit(END, hidden)).pack()
    header = head + header[len(head) :] + tail
    leaf = leaf_hash(header)
    signed = text or Checkpoint(origin, size, over(leaf)).text()
    line = base64.b64encode(key_id(MINE.name, b"\x01" + MINE.public_bytes) + MINE.sign_bytes(signed.encode())).decode()
    parts = {"header": header, "sealed": hidden, "key": key}
    entry: dict[str, Any] = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    entry |= {"open": END.decode(), "proof": [base64.b64encode(item).decode() for item in proof]}
    return {
        "format": "aibox/receipt/v1", "turn": "t", "tenant": "t", "public_key": public or public_key(MINE),
        "rotations": [], "checkpoint": note(f"{signed}\n\N{EM DASH} aibox {line}\n"), "entries": [entry],
    }  # fmt: skip


def typed(kind: int) -> tuple[str, bytes]:
    key = bytes([kind]) + MINE.public_bytes
    return f"aibox+{key_id('aibox', key).hex()}+{base64.b64encode(key).decode()}", key_id("aibox", key)


def as_kind_two(note: str) -> str:
    """The signature is right, and says that its key is of a kind that nobody knows."""
    head, _, tail = note.rpartition(" ")
    signature = base64.b64decode(tail)
    return f"{head} {base64.b64encode(typed(2)[1] + signature[4:]).decode()}\n"


FORGED: dict[str, dict[str, Any]] = {
    "a key of another kind": {"public": typed(2)[0], "note": as_kind_two},
    "a key whose check sum is wrong": {"public": public_key(MINE).replace("+", "+0", 1)[:14] + public_key(MINE)[14:]},
    "seventeen signatures": {"note": lambda note: note + "\N{EM DASH} x AAAA\n" * 16},
    "a control character": {"origin": "o\x01", "log": "o\x01"},
    "a line that is no signature": {"note": lambda note: note + "x\n"},
    "nobody's signature": {"note": lambda note: note.replace("\N{EM DASH} aibox", "\N{EM DASH} other")},
    "no end of the note": {"note": lambda note: note.rstrip("\n")},
    "a size with a nought in front": {"text": "o\n01\n" + base64.b64encode(bytes(32)).decode() + "\n"},
    "an entry beyond the tree": {"seq": 1},
    "a proof that is too long": {"proof": (bytes(32),), "over": lambda leaf: node_hash(bytes(32), leaf)},
    "a proof that is too short": {"size": 2},
    "another root": {"over": lambda leaf: bytes(32)},
    "a hash of another length": {"size": 2, "proof": (bytes(31),), "over": lambda leaf: node_hash(leaf, bytes(31))},
    "a longer header": {"tail": b"\0"},
    "another magic": {"head": b"AIBY"},
    "another version": {"head": b"AIBX\2"},
    "unknown flags": {"head": b"AIBX\1\x60"},
    "another log": {"log": "p"},
    "a key of half the length": hidden(key=bytes(16)),
    "a key that it does not commit to": hidden(commitment=bytes(32)),
    "a private list": hidden(b"[]"),
    "a private part with more": hidden(b'{"actor":{"agent":"","session":"","user":"eva"},"detail":{},"x":1}'),
    "a private detail that is a list": hidden(b'{"actor":{"agent":"","session":"","user":"eva"},"detail":[]}'),
    "an actor that is a list": hidden(b'{"actor":["agent","session","user"],"detail":{}}'),
    "an actor without a session": hidden(b'{"actor":{"agent":"","user":"eva"},"detail":{}}'),
}


def test_a_receipt_that_breaks_no_rule_holds_in_both(tmp_path: Path) -> None:
    """The forger's own work is taken where nothing in it is wrong, so each refusal below has the one reason."""
    assert both(forged(), tmp_path) == 0
    assert both(forged(**hidden()), tmp_path) == 0
    assert both(forged(size=2, proof=(bytes(32),), over=lambda leaf: node_hash(leaf, bytes(32))), tmp_path) == 0


@pytest.mark.parametrize("rule", FORGED)
def test_each_rule_is_held_by_both(rule: str, tmp_path: Path) -> None:
    """One rule is broken, everything else fits and is signed: neither verifier takes it, and neither falls over."""
    assert both(forged(**FORGED[rule]), tmp_path) == 1


def test_another_spelling_of_the_same_bytes(tmp_path: Path) -> None:
    """Attack: base64 has spare bits; a receipt that uses them is not the receipt that was issued."""
    value = forged()
    text = value["entries"][0]["header"]
    assert text.endswith("=")
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    value["entries"][0]["header"] = text[:-2] + digits[digits.index(text[-2]) ^ 1] + "="
    assert both(value, tmp_path) == 2
    root = forged()["checkpoint"].split("\n")[2]
    other = root[:-2] + digits[digits.index(root[-2]) ^ 1] + "="
    assert both(forged(text=f"o\n1\n{other}\n"), tmp_path) == 1


def test_a_file_that_has_no_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound that is the same for both, a file is no receipt."""
    for module, name in ((tool, "MAX_BYTES"), (receipt_module, "MAX_RECEIPT_BYTES")):
        monkeypatch.setattr(module, name, 100)
    assert both(forged(), tmp_path) == 2


# The command line.


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIBOX_HOME", str(tmp_path))
    asyncio.run(write_log(tmp_path / "audit.db", 2))
    return tmp_path


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def do(*arguments: str) -> tuple[int, str]:
        code = run(arguments)
        done = capsys.readouterr()
        return code, done.out + done.err

    return do


def test_log_show_and_export(home: Path, say: Callable[..., tuple[int, str]]) -> None:
    """Entries are listed, shown whole and exported as they are stored, with a checkpoint beside them."""
    code, out = say("audit", "log", "--tenant", "acme", "--kind", "model", "--json")
    assert code == 0
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["model.called"] * 2
    code, out = say("audit", "show", "4", "--tenant", "acme")
    assert (code, json.loads(out)["actor"]["user"]) == (0, "eva")
    assert say("audit", "show", "99", "--tenant", "acme")[0] == 2
    target = home / "out.jsonl"
    assert say("audit", "export", str(target), "--tenant", "acme")[0] == 0
    assert len(target.read_text().splitlines()) == 6
    assert say("audit", "export", str(target), "--tenant", "acme")[0] == 2
    code, _ = say("verify", str(home / "audit.db"), "--checkpoint", str(target) + ".checkpoint")
    assert code == 0
    assert "eva" in say("audit", "log", "--tenant", "acme")[1]


def test_a_checkpoint_that_was_carried_away(home: Path, say: Callable[..., tuple[int, str]]) -> None:
    """It holds today; when the log has been rewritten and signed anew, it is what tells, and the exit code is 1."""
    assert say("audit", "checkpoint", str(home / "point"), "--tenant", "acme")[0] == 0
    assert say("audit", "checkpoint", "--tenant", "acme")[1] == (home / "point").read_text()
    code, out = say("verify", str(home / "audit.db"), "--checkpoint", str(home / "point"), "--json")
    assert (code, json.loads(out)["outside_checkpoints"]) == (0, 1)
    with by_hand(home / "audit.db") as db:
        for table in ("entries", "nodes", "checkpoints", "turns", "logs"):
            db.execute(f"DELETE FROM {table}")
    (home / "keys" / "highwater.json").unlink()
    assert say("verify", str(home / "audit.db"))[0] == 0
    code, out = say("verify", str(home / "audit.db"), "--checkpoint", str(home / "point"))
    assert code == 1
    assert "not here" in out
    assert say("verify", str(home / "audit.db"), "--checkpoint", str(home / "keys" / "log.pub"))[0] == 2


def test_rotate_erase_hold_and_prune(home: Path, say: Callable[..., tuple[int, str]]) -> None:
    """Each act is done and on record; a hold stops an erasure with exit code 2 and its reason."""
    acme = ("--tenant", "acme", "--reason", "because")
    assert say("audit", "rotate")[1].strip() == (home / "keys" / "log.pub").read_text().strip()
    code, out = say("audit", "hold", "eva", *acme)
    assert code == 0
    seq = out.split()[-1]
    code, out = say("audit", "erase", "eva", *acme)
    assert (code, "because" in out) == (2, True)
    assert say("audit", "hold", "--release", seq, *acme)[0] == 0
    certificate = home / "certificate.json"
    assert say("audit", "erase", "eva", "--certificate", str(certificate), *acme)[0] == 0
    assert say("verify", str(certificate), "--key", str(home / "keys" / "log.pub"))[0] == 0
    assert say("audit", "prune", "--days", "0", *acme)[1].startswith("6 bodies")
    code, out = say("verify", str(home / "audit.db"), "--json")
    assert (code, json.loads(out)["pruned"]) == (0, 6)
    assert say("audit", "erase", "eva", "--tenant", "acme")[0] == 2
    code, out = say("why", str(certificate))
    assert (code, "erased" in out) == (0, True)


def test_restore(home: Path, say: Callable[..., tuple[int, str]]) -> None:
    """A database that was put back is refused with the command that goes on with it, and that command does."""
    shutil.copy(home / "audit.db", home / "backup.db")
    asyncio.run(write_more(home / "audit.db"))
    shutil.copy(home / "backup.db", home / "audit.db")
    code, out = say("audit", "checkpoint", "--tenant", "acme")
    assert (code, "aibox audit restore" in out) == (2, True)
    assert say("verify", str(home / "audit.db"))[0] == 1
    assert say("audit", "restore", "--tenant", "acme", "--reason", "disk")[0] == 0
    code, out = say("verify", str(home / "audit.db"))
    assert (code, "put back by an operator" in out) == (0, True)


async def write_more(path: Path) -> None:
    async with AuditChain(path) as chain:
        await chain.append("tool.called", scope=ACME, detail={})
