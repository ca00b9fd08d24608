"""Losses compared on the user's own data: the plan of runs, what they came to, which differences exceed chance."""
