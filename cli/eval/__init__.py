"""`ziya eval`: how good a model's answers are, in English and in Chinese."""

from cli.eval.command import app as app
