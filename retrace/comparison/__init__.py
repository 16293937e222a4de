"""What differs between two sides: a version and another version, a commit of code, or the working copy.

Everything is read from git; only exact PSI reads data, from this machine's DVC cache or a remote that is a folder.
"""
