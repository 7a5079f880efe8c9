"""`make test-schema`: schemathesis over the whole OpenAPI document, against a served box whose model is scripted.

Requests that hold to the schema and such that do not; no answer may be a 5xx or another one than is documented. The
same requests each time, as far as ids allow: so many for a route, from one seed. It exits with schemathesis' code.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import uvicorn

sys.path.insert(0, str(Path(__file__).parent.parent))
from platform_world import ROLES, Person, world
from waiting import free_port

# Left out: labels, digests and names of documents are narrower than a schema says, so that what the schema allows may
# be a 400; and an answer to a stranger is the isolation matrix's matter, which knows whose things are whose.
LEFT_OUT = ("positive_data_acceptance", "object_level_authorization")

# A body that is longer than its schema allows may be longer than any may be.
CONFIG = """[checks]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]
"""


async def run(arguments: argparse.Namespace) -> int:
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        async with world(Path(home), isolated=True) as w:
            config = uvicorn.Config(w.app, port=port, log_level="warning", lifespan="off", server_header=False)
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.01)
            config_file = Path(home) / "schemathesis.toml"
            config_file.write_text(CONFIG)
            command = [
                str(arguments.schemathesis.absolute()), "--config-file", str(config_file), "run", f"http://127.0.0.1:{port}/v1/openapi.json",
                "--header", f"Authorization: Bearer {Person('acme', 'eva', ROLES).token()}",
                "--exclude-checks", ",".join(LEFT_OUT),
                "--max-examples", str(arguments.examples), "--seed", str(arguments.seed), "--generation-deterministic",
                "--warnings", "off", "--no-color", *arguments.more,
            ]  # fmt: skip
            ran = await asyncio.create_subprocess_exec(*command, cwd=home)
            code = await ran.wait()
            report = await w.box.audit.verify()
            print(f"the evidence of it holds: {report}")
            server.should_exit = True
            await serving
            return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("schemathesis", type=Path, help="where the program is")
    parser.add_argument("--examples", type=int, default=8, help="random requests for a route and phase")
    parser.add_argument("--seed", type=int, default=1)
    arguments, arguments_more = parser.parse_known_args()
    arguments.more = arguments_more
    return asyncio.run(run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
