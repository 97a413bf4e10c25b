"""The targets that only compute: nothing has to run for them, so atheris can follow their branches, too."""

from __future__ import annotations

from tests.fuzz import pictures, requests, tensors

PURE = (tensors.TARGET, pictures.TARGET, pictures.URL_TARGET, requests.TARGET, requests.LLAMA_TARGET)
