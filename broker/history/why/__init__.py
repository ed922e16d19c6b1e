"""Why a job is where it is on a workstation, and what happens next, in two sentences."""
