"""The history of all jobs: the stream `pcm.reports`, projected into an SQL database."""
