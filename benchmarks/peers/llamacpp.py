"""llama.cpp through its C interface: the requests are sequences of one batch, prompts as embeddings.

Its own server was not taken: the one in the Python package decodes a request at a time.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.peers import workload
from benchmarks.peers.answering import Round, Setting, answer
from benchmarks.peers.workload import NEW, PROMPT

FORMATS = {"bf16": "bf16", "int8": "q8_0"}


class LlamaCpp:
    """A model and one context with room for as many sequences as are ever asked for."""

    def __init__(self, setting: Setting) -> None:
        llama_cpp.llama_backend_init()
        path = setting.models / f"llama-{FORMATS[setting.precision]}.gguf"
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        how = llama_cpp.llama_context_default_params()
        how.n_ctx = (PROMPT + NEW) * (setting.most + 2)
        how.n_batch = how.n_ubatch = 4096
        how.n_seq_max = setting.most
        how.n_threads = how.n_threads_batch = setting.threads
        self._context = llama_cpp.llama_init_from_model(model, how)
        self._width = llama_cpp.llama_model_n_embd(model)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._prompts = llama_cpp.llama_batch_init(PROMPT * setting.most, self._width, 1)
        self._step = llama_cpp.llama_batch_init(setting.most, 0, 1)

    def round(self, requests: range) -> Round:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        rows = np.concatenate([workload.embeddings(request, self._width) for request in requests])
        began = time.perf_counter()
        ctypes.memmove(self._prompts.embd, rows.ctypes.data, rows.nbytes)
        places = [(sequence, place) for sequence in range(len(requests)) for place in range(PROMPT)]
        self._decode(self._prompts, places, wanted=lambda place: place == PROMPT - 1)
        tokens = [self._best((sequence + 1) * PROMPT - 1) for sequence in range(len(requests))]
        first = time.perf_counter() - began
        for place in range(PROMPT, PROMPT + NEW - 1):
            for sequence, token in enumerate(tokens):
                self._step.token[sequence] = token
            self._decode(self._step, [(sequence, place) for sequence in range(len(requests))])
            tokens = [self._best(sequence) for sequence in range(len(requests))]
        return Round(time.perf_counter() - began, [first] * len(requests), NEW * len(requests))

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._prompts)
        llama_cpp.llama_batch_free(self._step)
        llama_cpp.llama_free(self._context)

    def _decode(self, batch: Any, places: Iterable[tuple[int, int]], wanted: Any = lambda place: True) -> None:
        batch.n_tokens = 0
        for row, (sequence, place) in enumerate(places):
            batch.pos[row], batch.n_seq_id[row], batch.logits[row] = place, 1, wanted(place)
            batch.seq_id[row][0] = sequence
            batch.n_tokens += 1
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama.cpp did not decode a batch")

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocabulary,)).argmax())


if __name__ == "__main__":
    answer(LlamaCpp)
