"""docs/values.md is what the chart's schema and values say. `python -m tests.test_chart_reference` writes it anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHART, DOCUMENT = ROOT / "charts" / "ziya-visual", ROOT / "docs" / "values.md"
HEAD = """# Values of the chart

Made from the chart's `values.schema.json` and `values.yaml`; [install.md](install.md) tells how to use them. Times are
in seconds. A name or a value that is not allowed here stops Helm.

| value | default | |
| --- | --- | --- |
"""


def reference() -> str:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    return HEAD + "".join(f"| {row} |\n" for row in rows(schema, values, schema["definitions"], ""))


def rows(node: dict[str, Any], value: Any, definitions: dict[str, Any], path: str) -> Iterator[str]:
    shared = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else {}
    whole = {**shared, **node}
    inner = {name: one for name, one in whole.get("properties", {}).items() if "description" in one}
    if path:
        yield f"`{path}` | {'' if inner else f'`{json.dumps(value)}`'} | {whole['description']}{allowed(whole)}"
    if inner:
        for name, one in inner.items():
            yield from rows(one, value[name], definitions, f"{path}.{name}".lstrip("."))


def allowed(node: dict[str, Any]) -> str:
    """What else the schema knows of it."""
    if "enum" in node:
        return ": " + ", ".join(f"`{one}`" for one in node["enum"])
    low, high = node.get("minimum"), node.get("maximum")
    above = f"above {node['exclusiveMinimum']}" if "exclusiveMinimum" in node else ""
    bounds = above or (f"from {low}" if low is not None else "")
    return f" ({bounds}{f' to {high}' if high is not None else ''})" if bounds or high is not None else ""


def test_the_reference_is_current() -> None:
    assert DOCUMENT.read_text("utf-8") == reference(), "python -m tests.test_chart_reference"


if __name__ == "__main__":
    DOCUMENT.write_text(reference(), "utf-8")
