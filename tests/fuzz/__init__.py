"""Fuzzing of all readers of untrusted bytes.

`entrances` names what is entered, and what each may answer; `mutation` makes bad bytes of good
ones. `make test` runs a fixed number of them, `make fuzz MINUTES=10` as many as there is time
for, led by what of the code they reach.
"""
