"""The one way to a language model behind an OpenAI-compatible URL: asked once, accounted for, kept, never over budget.

An Asker puts a Question to an Endpoint and writes what comes back into a Ledger before anybody sees it. A question's
name is the digest of all that decides its answer, so a build that was killed goes on where it was.
"""
