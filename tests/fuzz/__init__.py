"""Hostile inputs for everything that reads a stranger's bytes.

A target makes inputs and feeds them to the real thing; `check.py` judges: an answer, or an error of our tree that
blames the input, in bounded time and memory. `make test` takes some hundred inputs of each, `make fuzz` ten thousand
and more, and has atheris look for others along the code's own branches.
"""
