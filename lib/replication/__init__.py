"""What is about the study alone: its texts quoted letter for letter, its released result files read again.

The library `rewired` knows nothing of it; its command line imports these modules when they are asked for.
"""
