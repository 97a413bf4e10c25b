"""A promotion gate's query to Prometheus: one instant value, or nothing."""

from __future__ import annotations

import json
import logging
import math
import urllib.error
import urllib.parse
import urllib.request

from services.operator.resource import CanaryGate

TIMEOUT_SECONDS = 5.0
log = logging.getLogger(__name__)


def measure(gate: CanaryGate) -> float | None:
    """The first sample's value. None where nobody answers, or there is no sample: no evidence is not a good sign."""
    url = f"{gate.prometheus.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': gate.query})}"
    if not url.startswith(("http://", "https://")):
        log.warning("the gate's prometheus is not an HTTP address: %s", gate.prometheus)
        return None
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            result = json.load(answer)["data"]["result"]
        value = float(result[0]["value"][1])
    except (urllib.error.URLError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        log.warning("%s does not answer %r: %s", gate.prometheus, gate.query, error)
        return None
    return None if math.isnan(value) else value
