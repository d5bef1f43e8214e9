"""Reference solutions: each file evaluates the solution of one equation at scattered points, with a stated accuracy.

Nothing here is collective: a rank evaluates its own points, and every rank that solves gets the same bits.
Expensive solves are done once per process and kept.
"""
