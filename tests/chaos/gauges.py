"""The numbers that the programs of a stack tell of themselves, read from their metrics pages."""

from __future__ import annotations

import json
import re
import urllib.request

from tests.chaos.scene import Scene

# Where each program says that it is still busy with a request.
BUSY = {
    "gateway": ("ziya_gateway_in_flight",),
    "vision": ("ziya_vision_rpc_in_flight", "ziya_vision_batch_queued"),
    "qformer": ("ziya_qformer_rpc_in_flight", "ziya_qformer_batch_queued"),
    "triton": ("ziya_llama_running", "ziya_llama_waiting", "ziya_llama_waiting_for_images"),
}


def pages(scene: Scene) -> dict[str, str]:
    """The address of each program's metrics: as the Python services announced it last, and as Triton was told."""
    found = {}
    for name in ("gateway", "vision", "qformer"):
        lines = (scene.stack.state / "logs" / f"{name}.log").read_text("utf-8").splitlines()
        announced = [json.loads(line) for line in lines if '"event": "listening"' in line]
        found[name] = f"http://127.0.0.1:{announced[-1]['metrics']}/metrics"
    [port] = [word for word in scene.process("triton").cmdline() if word.startswith("--metrics-port=")]
    return {**found, "triton": f"http://127.0.0.1:{port.partition('=')[2]}/metrics"}


def read(page: str) -> dict[str, float]:
    """The sum over all labels of each number."""
    with urllib.request.urlopen(page, timeout=5) as reply:
        text = reply.read().decode()
    sums: dict[str, float] = {}
    for name, value in re.findall(r"^(ziya_\w+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def busy(page: str, program: str) -> float:
    """How many requests, calls or pieces of work the program still holds."""
    numbers = read(page)
    return sum(numbers[name] for name in BUSY[program])
