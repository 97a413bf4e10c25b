"""A small Kubernetes for tests: a stateful API server over real HTTP, and the controllers that a cluster has.

`cluster.Cluster` is the way in. Objects are plain dicts in `store`; `verbs` says what create, update, patch and delete
do to them; `routes` puts that on HTTP; `job_controller`, `garbage`, `namespaces` and `kubelet` act on what the store
tells them. Everything runs on one event loop in one thread, so no step of a controller ever meets half a write.
"""
