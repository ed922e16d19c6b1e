"""Injects faults for some minutes, and checks that every promise was kept.

    python -m tests.chaos --minutes 3 --seed 7

Workstations with real agents get hundreds of jobs of all kinds, while agents and the broker are
killed, frozen and cut off. Then the faults end until all jobs have ended, and what really
ran is compared with what was reported. Exit status 1: something forbidden happened. Its
events are printed, and the seed makes the same plan again.
"""
