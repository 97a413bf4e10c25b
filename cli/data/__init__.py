"""`ziya data`: datasets to train from."""

from cli.data.command import app as app
