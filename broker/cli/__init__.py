"""Command line: parse the options, call the broker, print.

`commands` is the only module that is imported at once, so that `--help` is quick; each command imports its own module
when it runs. Results go to standard output, progress and errors to standard error.
"""
