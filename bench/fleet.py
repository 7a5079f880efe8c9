"""A fleet of simulated model servers, for how well requests are spread: time is simulated, the choices are real.

Each server works as vLLM does: it reads prompts in chunks, skips what its prefix cache holds, writes one token for
every running request in each step, and makes the rest wait. Speeds are those of a mid-size model on one accelerator;
only ratios between policies mean anything.
"""

from __future__ import annotations

import csv
import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aibox.inference.balance import choose
from aibox.inference.replica import Replica
from aibox.testing import ScriptedBackend

RUNNING = 24
"""Requests that one server works on at once."""
STEP_S = 0.018
STEP_S_PER_REQUEST = 0.0006
READ_TOKENS_S = 9000.0
CHUNK_TOKENS = 1024
BLOCK_TOKENS = 64
CACHE_BLOCKS = 6000
"""Blocks of the prefix cache of one server: some 380,000 tokens."""


@dataclass(slots=True)
class Job:
    arrives: float
    key: int
    blocks: tuple[int, ...]
    """Its prompt, in blocks; equal beginnings have equal blocks."""
    output: int
    left: int = 0
    unread: int = 0
    begun: float = 0.0
    """When its first token was written."""


@dataclass(slots=True)
class Server:
    """`slow` stretches every step: an older card, a hot one, a neighbour."""

    replica: Replica
    slow: float = 1.0
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    busy: bool = False
    hits: int = 0
    asked: int = 0

    def admit(self) -> None:
        while self.waiting and len(self.running) < RUNNING:
            job = self.waiting.popleft()
            known = 0
            for block in job.blocks:
                if block not in self.cache:
                    break
                known += 1
            self.hits += known
            self.asked += len(job.blocks)
            for block in job.blocks:
                self.cache[block] = None
                self.cache.move_to_end(block)
            while len(self.cache) > CACHE_BLOCKS:
                self.cache.popitem(last=False)
            job.unread = (len(job.blocks) - known) * BLOCK_TOKENS
            self.running.append(job)

    def step(self, now: float) -> tuple[float, list[Job]]:
        """One step: seconds that it takes, and the jobs that it finishes."""
        room, reading = CHUNK_TOKENS, 0
        ended, going = [], []
        for job in self.running:
            if job.unread:
                part = min(job.unread, room)
                room -= part
                reading += part
                job.unread -= part
                going.append(job)
                continue
            job.begun = job.begun or now
            job.left -= 1
            (going if job.left > 0 else ended).append(job)
        taken = (STEP_S + STEP_S_PER_REQUEST * len(self.running) + reading / READ_TOKENS_S) * self.slow
        self.running = going
        return taken, ended


Pick = Callable[[Sequence[Server], Job], Server]


def simulate(jobs: Sequence[Job], servers: Sequence[Server], pick: Pick) -> tuple[list[float], float]:
    """(Seconds until each request's first token, share of prompt blocks found in a cache.)"""
    for job in jobs:
        job.left, job.begun = job.output, 0.0
    events: list[tuple[float, int, int, Server | Job]] = [(job.arrives, n, 0, job) for n, job in enumerate(jobs)]
    heapq.heapify(events)
    number = len(jobs)
    took: list[float] = []
    ending: dict[int, list[Job]] = {}
    while events:
        now, _, _, what = heapq.heappop(events)
        if isinstance(what, Job):
            server = pick(servers, what)
            server.waiting.append(what)
            server.replica.outstanding += 1
            if server.busy:
                continue
        else:
            server = what
            for job in ending.pop(id(server), ()):
                took.append(job.begun - job.arrives)
                server.replica.outstanding -= 1
        server.admit()
        server.busy = bool(server.running)
        if server.busy:
            taken, ended = server.step(now)
            ending[id(server)] = ended
            number += 1
            heapq.heappush(events, (now + taken, number, 0, server))
    asked = sum(server.asked for server in servers)
    return took, sum(server.hits for server in servers) / asked


def fleet(size: int) -> list[Server]:
    """One in eight is half as fast as the others."""
    servers = [Server(Replica(ScriptedBackend(name=f"http-10-0-0-{n}-8000"))) for n in range(size)]
    for server in servers[::8]:
        server.slow = 2.0
    return servers


def load(size: int, *, seed: int, conversations: int, rate: float) -> list[Job]:
    """Conversations that arrive in bursts: a shared system prompt, turns that grow, answers with a long tail.

    Lengths are log-normal, as those of published traces of chat services are: prompts of some hundred to some thousand
    tokens, answers with a median of about 150 tokens and a tail to 2000. `rate` is requests a second for each server.
    """
    draw = random.Random(seed)
    systems = [tuple(draw.getrandbits(60) for _ in range(draw.randint(2, 40))) for _ in range(12)]
    jobs = []
    clock = 0.0
    for _ in range(conversations):
        # Bursts: the rate itself swings, and half of the arrivals come close together.
        swing = 1 + 0.6 * math.sin(clock / 20)
        clock += draw.expovariate(rate * size / 3.2 * swing) * draw.choice((0.2, 1.8))
        blocks = systems[min(int(draw.paretovariate(1.1)) - 1, 11)]
        key, at = draw.getrandbits(64), clock
        for _ in range(min(1 + int(draw.expovariate(1 / 2.2)), 12)):
            asked = max(1, int(draw.lognormvariate(math.log(200), 1.0)) // BLOCK_TOKENS)
            output = max(8, min(2000, int(draw.lognormvariate(math.log(150), 0.9))))
            blocks = (*blocks, *(draw.getrandbits(60) for _ in range(asked)))
            jobs.append(Job(at, key, blocks, output))
            blocks = (*blocks, *(draw.getrandbits(60) for _ in range(output // BLOCK_TOKENS)))
            at += output * 0.03 + draw.lognormvariate(math.log(12), 0.8)
    return sorted(jobs, key=lambda job: job.arrives)


COLUMNS = ("arrives_s", "conversation", "prompt_tokens", "output_tokens")


def recorded(path: Path, *, seed: int = 0) -> list[Job]:
    """A load that somebody recorded: CSV with a head of COLUMNS, a line a request.

    `arrives_s` counts from the first one; requests of one `conversation` begin with what stood in those before them,
    and `prompt_tokens` is the whole prompt. No text is needed. Raises ValueError for a file of another form.
    """
    draw = random.Random(seed)
    known: dict[str, tuple[int, tuple[int, ...]]] = {}
    jobs = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} needs the columns {','.join(COLUMNS)}")
        for row in sorted(rows, key=lambda row: float(row["arrives_s"])):
            key, earlier = known.get(row["conversation"]) or (draw.getrandbits(64), ())
            many, output = max(1, int(row["prompt_tokens"]) // BLOCK_TOKENS), max(1, int(row["output_tokens"]))
            blocks = (*earlier[:many], *(draw.getrandbits(60) for _ in range(many - len(earlier))))
            jobs.append(Job(float(row["arrives_s"]), key, blocks, output))
            known[row["conversation"]] = key, (*blocks, *(draw.getrandbits(60) for _ in range(output // BLOCK_TOKENS)))
    if not jobs:
        raise ValueError(f"{path} holds no request")
    return jobs


def round_robin() -> Pick:
    turn = iter(range(10**9))
    return lambda servers, _: servers[next(turn) % len(servers)]


def least_loaded(servers: Sequence[Server], _: Job) -> Server:
    return _chosen(servers, None)


def ours(servers: Sequence[Server], job: Job) -> Server:
    return _chosen(servers, job.key)


def perfect_affinity(servers: Sequence[Server], job: Job) -> Server:
    """A conversation always at home, whatever that costs: the most that a cache can give."""
    return servers[job.key % len(servers)]


def _chosen(servers: Sequence[Server], key: int | None) -> Server:
    chosen = choose([server.replica for server in servers], key)
    return next(server for server in servers if server.replica is chosen)
