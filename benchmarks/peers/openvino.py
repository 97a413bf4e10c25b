"""OpenVINO GenAI's continuous batching on a CPU. Its language-model pipelines take token ids, no embeddings."""

from __future__ import annotations

import time
from itertools import count

import numpy as np
import openvino
import openvino_genai

from benchmarks.peers import workload
from benchmarks.peers.answering import Round, Setting, answer
from benchmarks.peers.workload import NEW, PROMPT


class OpenVino:
    """Steps the pipeline itself and reads what each step gave."""

    def __init__(self, setting: Setting) -> None:
        limits = openvino_genai.SchedulerConfig()
        limits.cache_size = 1  # GiB
        limits.max_num_seqs = max(64, setting.most)
        limits.max_num_batched_tokens = 4096
        limits.enable_prefix_caching = False
        properties = {
            "INFERENCE_NUM_THREADS": setting.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16",
        }
        folder = setting.models / f"openvino-{setting.precision}"
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), limits, "CPU", properties)
        self._how = openvino_genai.GenerationConfig()
        self._how.max_new_tokens = self._how.min_new_tokens = NEW
        self._how.ignore_eos = True
        self._how.do_sample = False
        self._names = count()

    def round(self, requests: range) -> Round:
        prompts = [openvino.Tensor(np.array([workload.token_ids(one, PROMPT)], np.int64)) for one in requests]
        firsts, tokens = [0.0] * len(prompts), 0
        began = time.perf_counter()
        handles = [self._pipeline.add_request(next(self._names), prompt, self._how) for prompt in prompts]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter() - began
            for index, handle in enumerate(handles):
                if handle.can_read():
                    firsts[index] = firsts[index] or now
                    tokens += sum(len(output.generated_ids) for output in handle.read().values())
        return Round(time.perf_counter() - began, firsts, tokens)

    def close(self) -> None:
        pass


if __name__ == "__main__":
    answer(OpenVino)
