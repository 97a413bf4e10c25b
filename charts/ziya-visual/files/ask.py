"""One question about a picture in Chinese and one in English to a gateway; fails where an answer does not come.

    GATEWAY=http://ziya-gateway:8080 python ask.py example.webp

What `helm test` runs, in the gateway's image: the standard library is all it needs.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

QUESTIONS = ("这是什么？", "What is this?")
SECONDS = 120.0


def ask(gateway: str, picture: bytes, question: str, key: str = "") -> str:
    """The answer's text. Raises OSError where there is none; an HTTP error says why."""
    url = f"data:image/webp;base64,{base64.b64encode(picture).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {"model": "ziya-visual", "temperature": 0, "messages": [{"role": "user", "content": parts}]}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{gateway}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as reply:
        text = json.load(reply)["choices"][0]["message"]["content"].strip()
    if not text:
        raise OSError("the answer is empty")
    return str(text)


def plain_key(text: str) -> str:
    """The first key that stands there as it is; the others' lines hold only hashes. Without any text there is none."""
    plain = [line for line in text.splitlines() if not line.lstrip().startswith(("{", "# "))]
    keys = " ".join(plain).replace(",", " ").split()
    if text.strip() and not keys:
        sys.exit("only hashes of API keys stand there: gateway.apiKeys.testKey is to name one that can be used")
    return keys[0] if keys else ""


def main() -> None:
    picture = Path(sys.argv[1]).read_bytes()
    key = plain_key(os.environ.get("API_KEYS", ""))
    for question in QUESTIONS:
        try:
            print(question, ask(os.environ["GATEWAY"], picture, question, key))
        except urllib.error.HTTPError as error:
            sys.exit(f"{question} {error}: {error.read().decode(errors='replace')}")
        except OSError as error:
            sys.exit(f"{question} {error}")


if __name__ == "__main__":
    main()
