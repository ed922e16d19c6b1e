"""All that runs on a workstation: what was asked is kept, decided, run and reported."""
