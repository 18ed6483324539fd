"""Emulators of the providers: the same routes, documents and images over HTTP, with faults on request.

It is the provider of `broker demo`, of a broker without a provider key, and of every test that needs a provider. It
shares no code with the adapters: both are written from the providers' documents, so that a misreading in one shows in
the tests. Reconsider when a provider offers a sandbox of its own.

Tags in a prompt select faults, as in `a red fox [mood:lost]` or `[mood:late:30] [mood:twice]`; so does the option
`--mood` for the whole sandbox. `faults.Fault` lists those that every provider can have. `GET /sandbox/jobs` lists every
accepted job with its reads, and every callback with its response. It is open to every client, so bind the sandbox to
loopback.

One engine does the work for all dialects: jobs and their durable journal, images, references, callbacks and downloads.
A dialect is what one provider's API looks like. To add one:

1. A package `dialects/<name>/` with a `SandboxDialect` (`dialect.py`): its routes, which validate a request into a
   `JobOrder` and answer with records; the bodies and signatures of its callbacks, if it has any; its response to a
   rejected request; the faults that it maps, with those that only it has in an enumeration of its own.
2. One line in `dialects/__init__.py`.
"""
