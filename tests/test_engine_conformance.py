"""The native engine conforms, on torch and, where this machine can, compiled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from services.llama.engine.blocks import BLOCK
from services.llama.engine.seam import Engine
from tests.engine_conformance import Conformance
from tests.engine_questions import KV_POSITIONS, OPTIONS, Start, conforming_checkpoint
from tests.engines import BOTH, engine_on


@BOTH
class TestNativeEngine(Conformance):
    @pytest.fixture(scope="session")
    def checkpoint(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return conforming_checkpoint(tmp_path_factory.mktemp("conforming") / "tiny")

    @pytest.fixture
    def start(self, checkpoint: Path, kernels: str) -> Start:
        return partial(engine_on, checkpoint, kernels=kernels, kv_blocks=KV_POSITIONS // BLOCK, **OPTIONS)

    @pytest.fixture
    async def engine(self, start: Start) -> AsyncIterator[Engine]:
        async with start() as engine:
            yield engine
