"""Emulator of kie.ai: the same routes, documents and images over HTTP, with faults on request.

It is the provider of `broker demo`, of a broker without a provider key, and of every test that needs a provider. It
shares no code with the adapter: both are written from kie.ai's documents, so that a misreading in one shows in the
tests. Reconsider when kie.ai offers a sandbox of its own.

Tags in a prompt select faults, as in `a red fox [mood:lost]` or `[mood:late:30] [mood:twice]`; so does the option
`--mood` for the whole sandbox. `faults.Fault` lists them all. `GET /sandbox/jobs` lists every accepted job
with its reads, and every callback with its response. It is open to every client, so bind the sandbox to loopback.
"""
