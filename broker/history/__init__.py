"""What came of all jobs, everywhere: the stream `pcm.reports`, folded into an SQL database."""
