"""How long tests wait for an event before they take it that it never comes.

No test is about this time: it only ends a test that hangs. It is long, since a machine that runs
several suites at once may take half a minute to start a program.
"""

LIMIT = 120.0  # seconds
