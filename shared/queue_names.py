"""The queues between the steps, apart from their messages so that indexing the app needs nothing else."""

FAILED_RUNS = "failed-runs"
RETRIES = "retries"
EMAILS = "emails"
QUEUES = (FAILED_RUNS, RETRIES, EMAILS)
