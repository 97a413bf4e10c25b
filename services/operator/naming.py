"""Names of children: derived from what the status says, so that whoever makes one twice makes the same one."""

from __future__ import annotations

import hashlib

# A pod's host name, `<job>-<index>`, may have 63 characters.
_JOB_CHARACTERS, _STAGE_CHARACTERS = 20, 16


def attempt_name(job: str, stage: str, uid: str, attempt: int) -> str:
    """Of an attempt's Job: `<job>-<stage>-<digits>-a<attempt>`. Long names are cut; the digits tell them apart."""
    digits = hashlib.sha256(f"{uid}/{stage}".encode()).hexdigest()[:8]
    return f"{_cut(job, _JOB_CHARACTERS)}-{_cut(stage, _STAGE_CHARACTERS)}-{digits}-a{attempt}"


def service_name(job: str, uid: str) -> str:
    """Of the headless Service by which the pods of one job find one another."""
    return f"{_cut(job, _JOB_CHARACTERS)}-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def output_folder(job: str, uid: str) -> str:
    """Of the job's results in its claim. A job that is deleted and made again begins in another one."""
    return f"{job}-{uid.replace('-', '')[:8]}"


def _cut(name: str, characters: int) -> str:
    # A job's name may have dots, a label of a host name may not, and must begin with a letter.
    short = name.replace(".", "-")[:characters].strip("-")
    return short if short[:1].isalpha() else f"j{short}"[:characters].rstrip("-")
