"""OpenAI's answers: one `chat.completion`, or `chat.completion.chunk` events.

A chunk is the same but for its text, so all around the text is made once a request: at many hundred chunks a
second in one process, a dictionary and a schema for each would cost more than carrying it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from services.gateway.job import Summary

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": still working\n\n"


class Shape:
    """The bodies of one request's answer. `include_usage`: OpenAI's extra last chunk with the usage.

    `logprobs`: whether the request asked for them, which an answer without a token says by an empty list.
    """

    def __init__(self, request_id: str, model: str, *, include_usage: bool = False, logprobs: bool = False) -> None:
        self._request_id = request_id
        self._head = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}
        self._include_usage = include_usage
        self._logprobs = logprobs
        head = json.dumps({**self._head, "object": "chat.completion.chunk"}, ensure_ascii=False)[:-1]
        self._before = f'data: {head}, "choices": [{{"index": 0, "delta": '
        usage = ', "usage": null' if include_usage else ""
        self._end = f', "finish_reason": null}}]{usage}}}\n\n'
        self._after = f', "logprobs": null{self._end}'
        self._head_json = head

    def first(self) -> bytes:
        """The event that opens the message."""
        return f'{self._before}{{"role": "assistant", "content": ""}}{self._after}'.encode()

    def piece(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> bytes:
        """The event of some text, and of the logarithms of its tokens."""
        after = self._after
        if logprobs:
            after = f', "logprobs": {json.dumps(_logprobs(logprobs), ensure_ascii=False)}{self._end}'
        return f'{self._before}{{"content": {json.dumps(text, ensure_ascii=False)}}}{after}'.encode()

    def last(self, summary: Summary) -> bytes:
        """The closing events. Usage, if wanted, and our report are on the last chunk."""
        finish = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": summary.finish_reason}
        report = self._report(summary)
        if not self._include_usage:
            return self._event({"choices": [finish], "ziya": report}) + DONE
        closing = self._event({"choices": [finish], "usage": None})
        return closing + self._event({"choices": [], "usage": usage_object(summary), "ziya": report}) + DONE

    def whole(self, text: str, summary: Summary, logprobs: Sequence[dict[str, Any]] = ()) -> bytes:
        """The body of an answer that is not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        told = _logprobs(logprobs) if self._logprobs else None
        choice = {"index": 0, "message": message, "logprobs": told, "finish_reason": summary.finish_reason}
        body: dict[str, Any] = {**self._head, "object": "chat.completion", "choices": [choice]}
        body |= {"usage": usage_object(summary), "ziya": self._report(summary)}
        return json.dumps(body, ensure_ascii=False).encode()

    def _event(self, fields: dict[str, Any]) -> bytes:
        return f"data: {self._head_json}, {json.dumps(fields, ensure_ascii=False)[1:]}\n\n".encode()

    def _report(self, summary: Summary) -> dict[str, Any]:
        return {
            "request_id": self._request_id,
            "images": [{"image_id": image.image_id, "cached": image.cached} for image in summary.images],
            "stage_seconds": summary.stage_seconds,
        }


def _logprobs(logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"content": list(logprobs), "refusal": None}


def usage_object(summary: Summary) -> dict[str, Any]:
    """OpenAI's usage, with our `image_tokens` beside its `cached_tokens`."""
    usage = summary.usage
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "image_tokens": usage.image},
    }
