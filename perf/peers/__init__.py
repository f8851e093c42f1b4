"""How each of the others is used: the way its documentation recommends for many small calls, no chunking by hand.

A package is imported when its system is made, and nowhere else.
"""
