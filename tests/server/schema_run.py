"""`make test-schema`: schemathesis over the whole OpenAPI document, against a served box whose model is scripted.

Requests that hold to the schema and such that do not; no answer may be a 5xx or another one than is documented, what
the schema allows is done and what it does not is refused, and no tenant is shown what is the other's. The same
requests each time, as far as ids allow: so many for a route, from one seed. It is served as `aibox serve` serves it. It
exits with schemathesis' code, or with 1 where the evidence of all that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from platform_world import ROLES, Person, world
from waiting import free_port

from aibox.server.process import Server

# A body that is longer than its schema allows may be longer than any may be. What a schema allows is done, unless it is
# not the caller's or not there, the state of things is against it, or its key or its ETag are another request's.
CONFIG = """[auth.wfc]
path = "people.json"
peers = ["acme", "rival"]

[checks]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]
positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 409, 412, 422, 428, 429]
"""
NARROWER = {
    "openai.chat": "what a model can do is the model's: one of embeddings does not chat",
    "openai.completions": "the scripted model has no completions",
    "openai.embeddings": "an agent is a model that does not embed",
    "openai.responses": "the scripted model has no responses",
    "memory.remember": "what holds from one day and until another holds until a later one",
    "knowledge.add": "groups are named for what is restricted alone, and a query has no schema of its whole",
    "policies.put": "what a policy says is docs/policy.schema.json's matter",
    "observability.usage": "`after` is the `next` of a page, whatever stands in that",
    "observability.deliveries": "likewise",
}
"""Operations that may answer 400 to what their schemas allow, and why no schema says so."""


def may_refuse(name: str) -> str:
    more = f'include-operation-id = "{name}"\nchecks.positive_data_acceptance.expected-statuses'
    return f'[[operations]]\n{more} = ["2xx", 400, 401, 403, 404, 409, 412, 422, 428, 429]\n'


def user(tenant: str) -> dict[str, Any]:
    """As Web Fuzzing Commons has it: one of two with all roles, who are not to have what is the other's."""
    header = {"name": "Authorization", "value": f"Bearer {Person(tenant, 'eva', ROLES).token()}"}
    return {"name": tenant, "fixedHeaders": [header]}


async def run(arguments: argparse.Namespace) -> int:
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        async with world(Path(home), isolated=True) as w:
            server = Server(w.app, limits=w.settings.server.limits)
            server.config.port = port
            serving = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.01)
            config_file = Path(home) / "schemathesis.toml"
            config_file.write_text(CONFIG + "".join(map(may_refuse, NARROWER)))
            (Path(home) / "people.json").write_text(json.dumps({"auth": [user("acme"), user("rival")]}))
            command = [
                str(arguments.schemathesis.absolute()), "--config-file", str(config_file), "run", f"http://127.0.0.1:{port}/v1/openapi.json",
                "--max-examples", str(arguments.examples), "--seed", str(arguments.seed), "--generation-deterministic",
                "--warnings", "off", "--no-color", *arguments.more,
            ]  # fmt: skip
            ran = await asyncio.create_subprocess_exec(*command, cwd=home)
            code = await ran.wait()
            server.should_exit = True
            await serving
            report = await w.box.audit.verify()  # raises where it does not hold, and that is no exit code of 0
            print(f"the evidence of it holds: {report}")
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
