"""The worker process that makes batches, and the shared memory they arrive in."""
