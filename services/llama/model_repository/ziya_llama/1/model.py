"""Triton's side of the LLaMA: numpy in, text out. All the work is done in `services.llama`.

Needs the `ziya-visual[llama]` package in the interpreter that Triton's Python backend uses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from services.llama.host import Host
from services.llama.lifeline import Lifeline
from services.llama.request import Inputs
from services.llama.settings import Settings
from ziya.errors import ZiyaError, to_line
from ziya.heap import keep_what_is_loaded
from ziya.telemetry import configure_logging

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Reply:
    """One request's response sender; the final flag goes with whatever ends the answer.

    Triton frees its side with the final flag: any call after it, even the question about cancellation, would
    crash the server. All calls come from one thread.
    """

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._ended = False

    def send(self, text: str, tokens: int, finish_reason: str, usage: str, logprobs: str) -> None:
        """What only some responses have is left out of the others: each output costs its way through Triton."""
        outputs = [_string("text", text), pb_utils.Tensor("tokens", np.array([tokens], dtype=np.int32))]
        outputs.append(_string("finish_reason", finish_reason))
        outputs += [_string(name, given) for name, given in (("usage", usage), ("logprobs", logprobs)) if given]
        self._put(pb_utils.InferenceResponse(outputs), final=bool(finish_reason))

    def fail(self, error: ZiyaError) -> None:
        self._put(pb_utils.InferenceResponse(error=pb_utils.TritonError(to_line(error))), final=True)

    def cancelled(self) -> bool:
        return not self._ended and bool(self._sender.is_cancelled())

    def _put(self, response: Any, *, final: bool) -> None:
        if not self._ended:
            self._ended = final
            self._sender.send(response, flags=FINAL if final else 0)


class TritonPythonModel:
    """The names are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        settings = Settings.load()
        configure_logging("llama", settings.log_level)
        self._host = Host(settings, pb_utils.MetricFamily)
        self._lifeline = Lifeline()
        keep_what_is_loaded()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            inputs = (_array(request, name) for name in ("prompt", "image_keys", "visual_tokens", "sampling"))
            self._host.take(Inputs(*inputs), Reply(request.get_response_sender()))

    def finalize(self) -> None:
        self._lifeline.release()
        self._host.close()


def _string(name: str, text: str) -> Any:
    return pb_utils.Tensor(name, np.array([text.encode()], dtype=np.object_))


def _array(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()
