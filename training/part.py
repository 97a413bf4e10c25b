"""What the parts of a TrainingJob file are made of: frozen models with Kubernetes' names, and strings of a shape.

Bounds are those of deploy/operator/crd.yaml: what this machine takes, a cluster takes too.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
PATH = r"^/[^:]*$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
URL = r"^https?://"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
# How a string of each shape is told to a person.
SHAPES = {
    NAME: "must be lower-case letters, digits and hyphens, no hyphen at either end",
    DNS: "must be lower-case letters, digits, hyphens and dots, a letter or digit at either end",
    PATH: "must be an absolute path",
    QUANTITY: "must be a quantity such as 16Gi",
    URL: "must begin with http:// or https://",
    VARIABLE: "must be letters, digits and underscores, no digit first",
}
Name = Annotated[str, Field(pattern=NAME, max_length=40)]
ObjectName = Annotated[str, Field(pattern=DNS, min_length=1, max_length=253)]
Word = Annotated[str, Field(min_length=1, max_length=63)]
Place = Annotated[str, Field(min_length=1, max_length=1024)]


class Part(BaseModel):
    """Unknown fields are refused; a file has camelCase."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)
