"""News in and out, provably from whom they say they are.

A callback is only news: it is written down and acknowledged at once, and read by a worker afterwards. What it may
change depends on what it proves (`inbound.judge`), and never on who it claims to be.

What callers are told is written down with the change that makes it true, and sent afterwards, at least once; what an
answer means is decided by `outbound.after`.
"""
