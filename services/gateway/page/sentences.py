"""What a visitor is told of an answer: how long its stages took, or why there is none."""

from __future__ import annotations

from services.gateway.page.answer import Answer, Refused
from services.gateway.page.words import say

_STAGES = ("admission", "vision", "qformer", "visual_wait", "prefill", "decode")
_BY_CODE = {
    "invalid_image": "bad_image",
    "invalid_image_url": "bad_image",
    "context_length_exceeded": "too_long",
    "forbidden": "forbidden",
    "request_too_large": "too_large",
    "rate_limit_exceeded": "own_limit",
    "overloaded": "full",
    "stage_unavailable": "down",
    "deadline_exceeded": "late",
    "internal_error": "defect",
}


def report(language: str, answer: Answer) -> str:
    """One line: times by stage, and tokens."""
    usage = answer.usage
    details = usage.get("prompt_tokens_details") or {}
    stages = [say(language, name, time=seconds(answer.stages[name])) for name in _STAGES if name in answer.stages]
    line = say(
        language,
        "report",
        first=seconds(answer.first or answer.total),
        total=seconds(answer.total),
        stages=" · ".join(stages) or "–",
        prompt=usage.get("prompt_tokens", 0),
        image=details.get("image_tokens", 0),
        cached=details.get("cached_tokens", 0),
        written=usage.get("completion_tokens", 0),
        speed=_speed(language, answer),
    )
    return f"{line} · {say(language, 'cut')}" if answer.finish == "length" else line


def refusal(language: str, error: Refused, key: str) -> str:
    """A plain sentence for an error of the gateway."""
    detail = error.message.rstrip(".")
    if error.status == 401:
        return say(language, "wrong_key" if key else "no_key")
    name = _BY_CODE.get(error.code) or ("broken" if error.status == 0 else "refused")
    if error.status == 0 and name not in ("late", "too_long"):
        name = "broken"
    if name == "down":  # what follows are addresses, and a library's words
        detail = detail.partition(":")[0]
    return say(language, name, detail=detail, wait=max(1, error.wait), request=error.request)


def seconds(time: float) -> str:
    """A time for people: in milliseconds below a second."""
    return f"{time * 1000:.0f} ms" if time < 1 else f"{time:.1f} s"


def _speed(language: str, answer: Answer) -> str:
    """Tokens a second after the first; nothing where there are too few to say."""
    left, time = answer.usage.get("completion_tokens", 0) - 1, answer.total - (answer.first or answer.total)
    return say(language, "speed", rate=left / time) if left > 0 and time > 0.01 else ""
