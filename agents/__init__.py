"""The agents of a workstation: they receive, store, schedule, run and report jobs."""
