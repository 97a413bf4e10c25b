"""A process that asks questions through a ledger, to be killed: python -m tests.llm_client URL LEDGER COUNT BUDGET.

Writes a line of JSON when it is done: how many answers, and their digest in the order of the questions.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path

from training.errors import BudgetSpent
from training.llm.asker import Asker
from training.llm.endpoint import Endpoint, Price
from training.llm.ledger import Ledger
from training.llm.question import Question

SCHEMA = {"type": "object", "properties": {"said": {"type": "string"}}, "required": ["said"]}
PRICE = Price(10.0, 30.0)


def question(number: int) -> Question:
    return Question(({"role": "user", "content": f"Picture number {number} shows a dog."},), SCHEMA, 60)


async def ask(url: str, path: Path, count: int, budget: float | None) -> dict[str, object]:
    found, spent = {}, False
    endpoint = Endpoint(url, "m", concurrency=8, price=PRICE, timeout=20.0)
    with Ledger(path) as ledger:
        async with Asker(endpoint, ledger, budget) as asker:
            try:
                async for number, known in asker.ask_all((number, question(number)) for number in range(count)):
                    found[number] = repr(getattr(known, "text", known))
            except BudgetSpent:
                spent = True
    text = json.dumps([found.get(number) for number in range(count)])
    return {"answers": len(found), "digest": hashlib.sha256(text.encode()).hexdigest(), "budget_spent": spent}


def main() -> None:
    url, path, count, budget = sys.argv[1:]
    done = asyncio.run(ask(url, Path(path), int(count), float(budget) if float(budget) else None))
    sys.stdout.write(json.dumps(done) + "\n")


if __name__ == "__main__":
    main()
