"""One module a job: the process that checks, plans, orchestrates and publishes; and the command line."""
