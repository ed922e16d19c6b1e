"""Lets everything go wrong for a while, and checks that every promise was kept all the same.

    python -m tests.chaos --minutes 3 --seed 7

Workstations with real agents get hundreds of jobs of all kinds, while agents and the broker are
killed, frozen and cut off. Then all of it is left in peace until it has drained, and what really
ran is compared with what was reported. Exit status 1: something forbidden happened; its story is
told, and the seed makes the same plan again.
"""
