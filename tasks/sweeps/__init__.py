"""Many runs: the launcher, the jobs, the search, and equal conditions."""
