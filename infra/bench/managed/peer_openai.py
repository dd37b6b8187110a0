"""openai-python with its aiohttp transport: calls a second against a URL, in the same manner as `managed.rs` measures."""

import asyncio
import json
import pathlib
import sys
import time

import openai


async def measure(url: str, at_once: int, seconds: float) -> None:
    body = json.loads((pathlib.Path(__file__).parent / "request.json").read_text())
    answered = 0
    client = openai.AsyncOpenAI(
        api_key="sk-bench", base_url=url, max_retries=0, http_client=openai.DefaultAioHttpClient(), timeout=60
    )

    async def work() -> None:
        nonlocal answered
        while True:
            await client.chat.completions.create(**body)
            answered += 1

    workers = [asyncio.create_task(work()) for _ in range(at_once)]
    await asyncio.sleep(1)
    before, began = answered, time.perf_counter()
    await asyncio.sleep(seconds)
    calls, passed = answered - before, time.perf_counter() - began
    for worker in workers:
        worker.cancel()
    ended = await asyncio.gather(*workers, return_exceptions=True)
    failed = [end for end in ended if not isinstance(end, asyncio.CancelledError)]
    if failed:
        raise SystemExit(f"{len(failed)} calls failed, the first with {failed[0]!r}")
    print(json.dumps({"client": "openai-python", "at_once": at_once, "calls": calls,
                      "calls_per_second": round(calls / passed)}))


asyncio.run(measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
