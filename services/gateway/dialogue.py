"""What a client asks, whichever face it came through: messages with image sources, sampling, a deadline.

Both faces (OpenAI over HTTP, VisualChat over gRPC) end here, so that they cannot differ in what they accept.
`to_dialogue` makes the strictly alternating dialogue that the prompt template wants:
- system text has no place in Ziya's template: it is kept apart, and put before the first user text of the prompt;
- neighbouring messages of one role are joined by a line break;
- the last message must be the user's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from ziya.errors import BadField, PromptTooLong
from ziya.prompt import Turn

ROLES = ("system", "user", "assistant")
# Far more than any context holds: what is above is refused before it is copied, tokenised or fetched.
MAX_MESSAGES = 1024
MAX_IMAGES = 64
MAX_TEXT_LENGTH = 1 << 20
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_BIASES = 1024
MAX_SCHEMA_LENGTH = 32_768
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image as it was asked for: exactly one of the file's bytes, a URL (http, https, data) or an image_id."""

    where: str
    data: bytes | None = None
    url: str = ""
    image_id: str = ""

    def __post_init__(self) -> None:
        if self.image_id and not _IMAGE_ID.fullmatch(self.image_id):
            raise BadField(f"{self.where}: an image_id is 64 hexadecimal digits in lower case", self.where)


@dataclass(frozen=True, slots=True)
class Message:
    """One message before merging. `where` is its path in the request, for complaints."""

    role: str
    text: str
    where: str
    images: tuple[ImageSource, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """Decoding options; None leaves the checkpoint's default. Raises BadField for a value out of range."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    json_schema: str = ""

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 2.0)
        _within("top_p", self.top_p, 0.0, 1.0, above=True)
        _within("top_k", self.top_k, 0, 1 << 20)
        _within("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        _within("max_tokens", self.max_tokens, 1, 1 << 20)
        _within("seed", self.seed, -(1 << 63), (1 << 64) - 1)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("logprobs", self.logprobs, 0, 20)
        self._check_bias()
        if len(self.json_schema) > MAX_SCHEMA_LENGTH:
            raise BadField(f"a JSON schema has at most {MAX_SCHEMA_LENGTH} characters", "response_format")
        if self.json_schema and self.ignore_eos:
            raise BadField("ignore_eos: a JSON text has an end", "ignore_eos")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise BadField(f"stop: at most {MAX_STOPS} strings, none of them empty", "stop")
        if any(len(stop) > MAX_STOP_LENGTH for stop in self.stop):
            raise BadField(f"stop: strings have at most {MAX_STOP_LENGTH} characters", "stop")

    def _check_bias(self) -> None:
        if len(self.logit_bias) > MAX_BIASES:
            raise BadField(f"logit_bias: at most {MAX_BIASES} tokens", "logit_bias")
        for token, bias in self.logit_bias.items():
            _within("logit_bias", token, 0, (1 << 31) - 1)
            _within("logit_bias", bias, -100.0, 100.0)

    def to_wire(self, *, deadline: float, request_id: str, **more: str) -> str:
        """The `sampling` input of Triton's model `ziya_llama`: a JSON object without the absent fields."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        # By identity: 0 is a temperature, and equal to False.
        wire = {n: v for n, v in values.items() if v is not None and v is not False and v not in ((), {}, "")}
        if self.seed is not None:
            wire["seed"] = self.seed % (1 << 64)
        wire |= {"deadline": deadline, "request_id": request_id}
        return json.dumps(wire | {name: text for name, text in more.items() if text})


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Alternating turns, first and last the user's, and the system text ("" for none)."""

    turns: tuple[Turn[ImageSource], ...]
    system: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request. `started` is monotonic seconds at its arrival; `deadline` absolute unix seconds."""

    dialogue: Dialogue
    sampling: Sampling
    started: float
    deadline: float
    request_id: str
    salt: str = ""
    adapter: str = ""

    def to_wire(self, traceparent: str) -> str:
        """What goes with the prompt to Triton's model `ziya_llama`: its `sampling` input.

        The salt goes along, since the language model reuses what it has computed for prompts that begin alike.
        """
        more = {"request_id": self.request_id, "traceparent": traceparent}
        more |= {"salt": self.salt, "adapter": self.adapter}
        return self.sampling.to_wire(deadline=self.deadline, **more)


def to_dialogue(messages: Sequence[Message]) -> Dialogue:
    """Merges and orders messages. Raises BadField naming the message that breaks the rules above, or PromptTooLong."""
    _check_size(messages)
    system = [m.text for m in messages if m.role == "system" and m.text]
    spoken = [m for m in messages if m.role != "system"]
    if not spoken:
        raise BadField("messages: there must be a message of the user", "messages")
    if spoken[0].role != "user":
        raise BadField(f"{spoken[0].where}: the dialogue must begin with the user", spoken[0].where)
    if spoken[-1].role != "user":
        raise BadField(f"{spoken[-1].where}: the last message must be the user's", spoken[-1].where)
    for message in messages:
        _check(message)
    turns: list[Turn[ImageSource]] = []
    for message in spoken:
        if turns and turns[-1].role == message.role:
            before = turns.pop()
            turns.append(Turn(message.role, _lines(before.text, message.text), before.images + message.images))
        else:
            turns.append(Turn(message.role, message.text, message.images))
    return Dialogue(tuple(turns), _lines(*system))


def _check_size(messages: Sequence[Message]) -> None:
    if len(messages) > MAX_MESSAGES:
        raise BadField(f"messages: at most {MAX_MESSAGES}, not {len(messages)}", "messages")
    if (images := sum(len(message.images) for message in messages)) > MAX_IMAGES:
        raise BadField(f"messages: at most {MAX_IMAGES} images, not {images}", "messages")
    if (length := sum(len(message.text) for message in messages)) > MAX_TEXT_LENGTH:
        raise PromptTooLong(f"the messages have {length} characters; at most {MAX_TEXT_LENGTH} are read")


def _check(message: Message) -> None:
    if message.images and message.role != "user":
        raise BadField(f"{message.where}: only the user's messages can show images", message.where)
    if message.role == "user" and not message.text.strip() and not message.images:
        raise BadField(f"{message.where}: the message is empty", message.where)


def _lines(*texts: str) -> str:
    return "\n".join(text for text in texts if text)


def _within(name: str, value: float | None, low: float, high: float, *, above: bool = False) -> None:
    if value is None or ((low < value if above else low <= value) and value <= high):
        return
    raise BadField(f"{name} must be {'above' if above else 'at least'} {low} and at most {high}, not {value}", name)
