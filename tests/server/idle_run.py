"""`make idle-streams`: thousands of streams that say nothing, held by one `aibox serve`.

It prints what each costs the server in memory, and how long a new request takes without and beside them. The server has
two files open for each; where a process may not have so many, it holds fewer and says so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WHOLE = json.dumps({
    "id": "x", "object": "chat.completion", "model": "m", "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
}).encode()  # fmt: skip
FIRST = b'data: {"id":"x","choices":[{"index":0,"delta":{"role":"assistant","content":"One. "}}]}\n\n'
PATIENCE_S = 600.0


def allow(files: int) -> int:
    """How many files this process, and those that it starts, may have open; raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in ((files, max(files, hard)), (min(files, hard), hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, wanted)
        except (OSError, ValueError):
            continue
        return wanted[0]
    return soft


async def upstream() -> None:
    """A model's server: a stream begins and then says nothing; what is no stream is answered."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        length = re.search(rb"content-length: (\d+)", head.lower())
        body = await reader.readexactly(int(length[1])) if length else b""
        if b'"stream":true' in body.replace(b" ", b""):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + FIRST)
            await reader.read()  # until whoever asked has gone
        else:
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(WHOLE)
            )
            writer.write(WHOLE)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def resident_kib(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def request(key: str, *, stream: bool) -> bytes:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def ask(port: int, key: str) -> float:
    """How long a new request takes, in milliseconds."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(key, stream=False))
    data = await reader.readuntil(b"Yes.")
    assert data.startswith(b"HTTP/1.1 200"), data
    writer.close()
    return (time.perf_counter() - began) * 1e3


async def hold(port: int, key: str, pid: int, count: int) -> dict[str, float]:
    alone = sorted([await ask(port, key) for _ in range(20)])[10]
    before, gate = resident_kib(pid), asyncio.Semaphore(16)
    held: list[asyncio.StreamWriter] = []

    async def one() -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            held.append(writer)
            writer.write(request(key, stream=True))
            try:
                await reader.readuntil(b"One. ")
            except asyncio.IncompleteReadError as error:
                raise SystemExit(f"stream {len(held)} was refused: {error.partial.decode()}") from None

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(one() for _ in range(count)))
    after = resident_kib(pid)
    beside = sorted([await ask(port, key) for _ in range(20)])[10]
    for writer in held:
        writer.close()
    return {
        "streams": len(held), "kib_a_stream": round((after - before) / count, 1), "server_mib": after >> 10,
        "answer_ms_alone": round(alone, 1), "answer_ms_beside": round(beside, 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--upstream", action="store_true", help="be the model's server")
    arguments = parser.parse_args()
    count = arguments.streams
    allowed = allow(2 * count + 1024)
    if arguments.upstream:
        asyncio.run(upstream())
    if allowed < 2 * count + 1024:
        count = (allowed - 1024) // 2
        print(f"only {allowed} files may be open here: {count} streams", file=sys.stderr)
    me = [sys.executable, __file__, "--upstream", "--streams", str(count)]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(me, stdout=subprocess.PIPE, text=True) as model:
        assert model.stdout is not None
        at = int(model.stdout.readline())
        (Path(folder) / "policy.toml").write_text("version = 1\n")
        (Path(folder) / "aibox.toml").write_text(
            f'home = "home"\npolicy = "policy.toml"\n[[backends]]\nkind = "openai"\nname = "up"\nmodels = ["m"]\n'
            f'url = "http://127.0.0.1:{at}/v1"\ncalls_at_once = {count + 100}\n[memory]\nenabled = false\n[server]\n'
            f"port = 0\n[server.limits]\nrequests = {count + 100}\nrequests_per_tenant = {count + 100}\n"
            f"connections = {count + 100}\ngrace_s = 1\n"
        )
        log = Path(folder) / "log"
        with (
            log.open("wb") as out,
            subprocess.Popen([sys.executable, "-m", "aibox", "serve"], stderr=out, cwd=folder) as server,
        ):
            try:
                said = None
                ends = time.monotonic() + PATIENCE_S
                while said is None:
                    assert server.poll() is None, log.read_text()
                    assert time.monotonic() < ends, log.read_text()
                    time.sleep(0.1)
                    said = re.search(r":(\d+)/v1\nkey \(shown this once\): (\S+)\n", log.read_text())
                print(json.dumps(asyncio.run(hold(int(said[1]), said[2], server.pid, count))))
            finally:
                server.terminate()
                server.wait(PATIENCE_S)
                model.kill()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
