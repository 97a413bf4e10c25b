"""The fault suite: a real stack under an open-loop load, with one thing broken at a time, or two."""
