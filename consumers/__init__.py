"""Takes messages out: worker, executor, retry policy, and the jobs that ship."""
