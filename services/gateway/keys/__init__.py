"""API keys: who asks, what the key may do, and how much of the system it may take, counted in Redis."""
