"""How much is worked on at once, who waits for a place, and who is refused."""
