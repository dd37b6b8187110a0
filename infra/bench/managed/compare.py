"""Both clients against one stub, one at a time in alternating order; prints medians, their spread and the ratio."""

import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
rowmill, rounds, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if rounds < 5:
    raise SystemExit("five rounds at least")

stub = subprocess.Popen([rowmill, "stub"], stdout=subprocess.PIPE, text=True)
assert stub.stdout
url = stub.stdout.readline().strip()


def measure(client: str, at_once: int) -> float:
    command = [rowmill, "send"] if client == "rowmill" else [sys.executable, str(HERE / "peer_openai.py")]
    said = subprocess.run([*command, url, str(at_once), seconds], check=True, capture_output=True, text=True).stdout
    return json.loads(said)["calls_per_second"]


def spread(numbers: list[float], digits: int = 0) -> str:
    return f"{statistics.median(numbers):,.{digits}f} ({min(numbers):,.{digits}f} to {max(numbers):,.{digits}f})"


try:
    print(f"Calls a second: median (lowest to highest) of {rounds} rounds of {seconds} s; the ratio is taken within a round.\n")
    print("| calls at once | Rowmill | openai-python with aiohttp | ratio |\n|---|---|---|---|")
    for at_once in (16, 128, 1024):
        measured: dict[str, list[float]] = {"rowmill": [], "openai-python": []}
        for number in range(rounds):
            clients = list(measured) if number % 2 == 0 else list(measured)[::-1]
            for client in clients:
                measured[client].append(measure(client, at_once))
        ratios = [ours / theirs for ours, theirs in zip(measured["rowmill"], measured["openai-python"])]
        print(f"| {at_once} | {spread(measured['rowmill'])} | {spread(measured['openai-python'])} | {spread(ratios, 1)} |", flush=True)
finally:
    stub.kill()
