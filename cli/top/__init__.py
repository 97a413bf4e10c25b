"""`ziya top`: a running stack, live in the terminal, out of what its processes tell on /metrics."""

from cli.top.command import app as app
