"""The shell's door: parse, call, print.

`commands` is the only module that loads at once, so that `--help` is quick; each command imports what it needs when it
runs. Results go to standard output, progress and complaints to standard error. Exit codes: 0 done, 1 not done,
2 wrong settings or a store in trouble, 130 interrupted.
"""
