"""A request in vLLM's words: prompt, sampling options, and what comes back of logprobs.

Text goes as token ids and visual tokens as embeddings, in one prompt: vLLM embeds what its mask calls ids. So
penalties see the ids of the text, and two prompts that begin alike have equal blocks in its prefix cache.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import embeds_input, tokens_input
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from services.llama.engine.guided import WHITE_SPACE
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt, TokenLogprob
from ziya.errors import InvalidRequest

HOTTEST = 2.0
COLDEST = 0.01  # vLLM takes less for this much


class Projection:
    """Puts visual tokens, [queries, Q-Former width], into the model's width: `token @ weight.T + bias`."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, visual: Any) -> Tensor:
        tokens = torch.tensor(visual, dtype=self._weight.dtype)
        return torch.nn.functional.linear(tokens, self._weight, self._bias)


def engine_input(prompt: Prompt, projection: Projection) -> Any:
    """vLLM's form of a checked prompt.

    A visual position needs some token id. It gets one that the prompt's text holds anyway, so that the set of tokens
    that a repetition penalty counts is that of the text; 0 (LLaMA's <unk>) where there is no text.
    """
    salt = base64.b85encode(prompt.salt).decode() if prompt.salt else None
    ids = [token for piece in prompt.pieces for token in piece]
    if not prompt.visuals:
        return tokens_input(ids, cache_salt=salt)
    stand_in = ids[0] if ids else 0
    width = projection(prompt.visuals[0][:0])
    tokens, is_token, rows = list[int](), list[bool](), list[Tensor]()
    for number, piece in enumerate(prompt.pieces):
        if number:
            rows.append(projection(prompt.visuals[number - 1]))
            tokens += [stand_in] * len(rows[-1])
            is_token += [False] * len(rows[-1])
        tokens += piece
        is_token += [True] * len(piece)
        rows.append(width.new_zeros(len(piece), width.shape[1]))
    return embeds_input(torch.cat(rows), prompt_token_ids=tokens, is_token_ids=is_token, cache_salt=salt)


def sampling_params(sampling: Sampling, eos: Sequence[int], limit: int) -> Any:
    """Up to `limit` tokens, ended by `eos` unless that is ignored; text and stop strings are not vLLM's business.

    Raises InvalidRequest for what vLLM does not do.
    """
    if sampling.temperature > HOTTEST:
        raise InvalidRequest(f"the vllm engine takes a temperature from 0 to {HOTTEST:g}, not {sampling.temperature:g}")
    try:
        return SamplingParams(
            temperature=max(sampling.temperature, COLDEST) if sampling.temperature else 0.0,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=_biases(sampling),
            logprobs=sampling.logprobs,
            # vLLM's own -1 means no seed, and its messages carry 64 bits
            seed=None if sampling.seed is None else sampling.seed % (1 << 63),
            max_tokens=limit,
            ignore_eos=True,
            stop_token_ids=[] if sampling.ignore_eos else list(eos),
            structured_outputs=_schema(sampling.json_schema),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )
    except (VLLMClientError, ValueError) as error:
        raise InvalidRequest(str(error)) from None


def _biases(sampling: Sampling) -> dict[int, float] | None:
    biases = dict[int, float]()
    for token, bias in sampling.logit_bias:
        biases[token] = biases.get(token, 0.0) + bias
    return biases or None


def _schema(schema: str) -> Any:
    """With the native engine's white space, which vLLM's guidance backend takes out of the schema."""
    if not schema:
        return None
    try:
        read = json.loads(schema)
    except ValueError as error:
        raise InvalidRequest(f"json_schema: {error}") from None
    if isinstance(read, dict):
        read["x-guidance"] = {"whitespace_pattern": WHITE_SPACE}
    return StructuredOutputsParams(json=json.dumps(read))


def check_params(params: Any, llm: Any) -> None:
    """What vLLM would find wrong when the request reaches it; takes long where there is a schema. InvalidRequest."""
    config = llm.vllm_config
    try:
        params.clone().verify(
            config.model_config, config.speculative_config, config.structured_outputs_config, llm.renderer.tokenizer
        )
    except (VLLMClientError, ValueError) as error:
        raise InvalidRequest(str(error)) from None


def token_logprobs(ids: Sequence[int], found: Sequence[Mapping[int, Any]] | None, top: int | None) -> list[Any]:
    """One TokenLogprob an id, with the `top` likeliest; None for each where the request asked for none."""
    if top is None or found is None:
        return [None] * len(ids)
    return [_logprob(token, row, top) for token, row in zip(ids, found, strict=True)]


def _logprob(token: int, row: Mapping[int, Any], top: int) -> TokenLogprob:
    best = sorted(((number, entry.logprob) for number, entry in row.items()), key=lambda pair: -pair[1])
    finite = tuple((number, value) for number, value in best if math.isfinite(value))
    return TokenLogprob(token, row[token].logprob, finite[:top])
