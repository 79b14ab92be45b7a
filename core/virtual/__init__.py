"""Virtual time: how long simulated clients would take on devices of different speeds, in virtual seconds.

A client's time in a phase is a pure function of its device and of numbers that the server knows beforehand:

    bytes down / download + examples gone through / speed + bytes up / upload

so that it is the same on every engine, and who would be late is known before anybody is asked.
"""
