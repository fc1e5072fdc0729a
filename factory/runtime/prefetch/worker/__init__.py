"""The worker process of `prefetch=process`, and the shared memory its batches arrive in."""
