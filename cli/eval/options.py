"""What can be said to `ziya eval`: what to ask, how, of whom, and where to write it. Defaults are the command's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from training.scoring.layouts import LAYOUTS
from training.scoring.tasks import TASKS

# Whom and what

Target = Annotated[
    str, typer.Argument(metavar="CHECKPOINT|URL", help="A checkpoint folder, or an OpenAI-compatible server's URL.")
]
Data = Annotated[
    list[str], typer.Option(metavar="[en=|zh=]PATH", help="What to ask; again for the same in the other language.")
]
Tasks = Annotated[list[str], typer.Option(metavar="TASK", help=f"Of {', '.join(TASKS)}; may be given again.")]

# Reading the data

Layout = Annotated[
    str | None, typer.Option(metavar="LAYOUT", help=f"Of {', '.join(LAYOUTS)}. [default: what PATH looks like]")
]
Images = Annotated[Path | None, typer.Option(help="Folder that picture names start at. [default: where PATH lies]")]
Annotations = Annotated[Path | None, typer.Option(help="VQA's answers. [default: beside PATH, by its name]")]
Split = Annotated[
    str | None,
    typer.Option(help="Of Karpathy's layout, CSVs and ScienceQA; of token files a list. [default: test]"),
]

# The wording

Language = Annotated[Literal["en", "zh", "both"], typer.Option(help="To ask in.")]
Field = Annotated[str | None, typer.Option(help="Of our own records, to read. [default: the task's]")]
Templates = Annotated[str | None, typer.Option(help="Set of wordings, whose first one is asked. [default: the task's]")]
Prompts = Annotated[
    list[str] | None, typer.Option(metavar="en=|zh=TEXT", help="Ask so instead; may hold {question}, {options}.")
]

# How much

Limit = Annotated[int | None, typer.Option(help="Ask about so many items, evenly spaced.", min=1)]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)]
TopK = Annotated[int, typer.Option(help="Retrieval: so many are ranked anew by ITM.", min=1)]

# Whom it is asked of

Model = Annotated[str | None, typer.Option(help="Its name at a URL. [default: the first that is listed]")]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")]
Concurrency = Annotated[int, typer.Option(help="Questions at once to a URL.", min=1)]
Device = Annotated[str | None, typer.Option(help="For a checkpoint. [default: a GPU where there is one]")]
Threads = Annotated[int | None, typer.Option(help="Of torch, for a checkpoint. [default: its own choice]", min=1)]

# What is kept and written

StoreFolder = Annotated[
    Path | None, typer.Option(help="Folder that answers are kept in. [default: ~/.local/state/ziya/eval]")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Ask everything again.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")]
PredictionsFile = Annotated[
    Path | None, typer.Option("--predictions", metavar="FILE", help="Write every answer and its score there.")
]
