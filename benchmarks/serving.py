"""Answers a second of a server: many clients at once beside one at a time, each with a memory and a question of its own.

    python benchmarks/serving.py [--json] [--clients 64]

A random Llama, its server in this process, and OpenAI's client over HTTP. Both runs ask the same questions, in turn, and
every answer must be the same in both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import openai
import uvicorn
from memwrite_server.app import create_app
from memwrite_server.service import Service
from memwrite_server.settings import Settings
from memwrite_server.tenants import NOBODY, Tenants
from timing import ratio

from memwrite import Memory
from memwrite.evaluation.machine import machine
from memwrite.stores import Store

ROUNDS, TOKENS, BATCH = 5, 16, 32
CONFIG = {
    "backbone": {
        "type": "llama",
        "params": {
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "max_position_embeddings": 512,
        },
    },
    "writer": {"name": "forward", "params": {"slots": 16}},
    "reader": {"name": "prefix"},
}


@contextmanager
def served(memory: Memory, folder: Path) -> Iterator[tuple[str, Service]]:
    """Serve a memory on a free port."""
    with Store(folder / "memories.db") as store:
        service = Service({"model": memory}, store, Tenants([]), Settings(batch=BATCH))
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="warning"))
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", service
        finally:
            server.should_exit = True
            thread.join()


def measure(clients: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of each round, one at a time and all at once."""
    memory = Memory.from_config(CONFIG)
    texts = [f"Sailor {i} lost {i * i} coins." for i in range(clients)]
    questions = [f"Sailor {i} lost" + " coins" * (i % 4) for i in range(clients)]
    with tempfile.TemporaryDirectory() as folder, served(memory, Path(folder)) as (url, service):
        for i, text in enumerate(texts):
            service.shelf.put(NOBODY, f"sailor-{i}", "model", memory.write(text).state, None)
        return asyncio.run(_rounds(url, questions, rounds))


async def _rounds(url: str, questions: list[str], rounds: int) -> dict[str, Any]:
    latencies: list[float] = []

    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        start = time.perf_counter()
        got = await client.completions.create(
            model="model",
            prompt=questions[number],
            max_tokens=TOKENS,
            extra_body={"memory": f"sailor-{number}"},
        )
        latencies.append(time.perf_counter() - start)
        return got.choices[0].text

    numbers = range(len(questions))
    seconds: dict[str, list[float]] = {"one at a time": [], "at once": []}
    waits: dict[str, list[float]] = {name: [] for name in seconds}
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        for turn in range(rounds + 1):
            said = {}
            for name in seconds:
                latencies.clear()
                start = time.perf_counter()
                if name == "at once":
                    said[name] = await asyncio.gather(*(ask(client, n) for n in numbers))
                else:
                    said[name] = [await ask(client, n) for n in numbers]
                if turn:
                    seconds[name].append(time.perf_counter() - start)
                    waits[name].append(median(latencies))
            if said["at once"] != said["one at a time"]:
                raise SystemExit("an answer differs between the two runs")
    return {"seconds": seconds, "latency": {name: median(w) for name, w in waits.items()}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    found = measure(given.clients, given.rounds)
    seconds = found["seconds"]
    gained = ratio(seconds["one at a time"], seconds["at once"])
    if given.json:
        print(json.dumps({**found, "gained": asdict(gained), "machine": machine()}))
        return
    for name, taken in seconds.items():
        rate, wait = given.clients / median(taken), found["latency"][name]
        print(
            f"{given.clients} clients {name}: {rate:.1f} answers/s, median wait {1000 * wait:.0f} ms"
        )
    print(f"at once: {gained} as many")


if __name__ == "__main__":
    main()
