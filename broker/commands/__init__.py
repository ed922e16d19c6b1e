"""What `pcm` can do, a file for each command or group of commands.

Each file has `add_to`, which says how its options are read. What a command needs is imported
when it is run.
"""
