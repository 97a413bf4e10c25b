"""The chat page at `/`: a process of its own beside the gateway, started by its first visitor (docs/chat-page.md).

`process.py` and `proxy.py` are the gateway's side of it and know no gradio; all other modules are the page's side,
and know no gateway but its HTTP API.
"""
