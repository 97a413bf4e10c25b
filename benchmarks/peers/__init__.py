"""Other engines, each in an environment and a process of its own, that answer the same questions as the native one.

Read in this order: `workload` says what a request is, `answering` is a measured process's side of the talk and `child`
the benchmark's; then one module an engine. `environments` and `models` make what they need.
"""
