"""A pretend kie.ai: the same addresses, words and pictures over real HTTP, kept or broken on request.

It is the provider of `broker demo`, of a broker without any key, and of every test that needs a provider. So that it
can disagree with our reading of kie.ai's documents, it shares no code with the adapter: both are written from the
documents, and the tests let them meet. Reconsider when kie.ai offers a sandbox of its own.

A job misbehaves when its prompt carries a tag, `a red fox [mood:lost]` or `[mood:late:30] [mood:twice]`, or when the
whole sandbox is started in a mood. `moods.Mood` lists them all. `GET /sandbox/jobs` is the ledger: every job that was
accepted, how often it was asked about, and every callback with its answer. It is open to all, so bind the sandbox to
loopback.
"""
