"""The webhook protocol in both directions, without I/O.

Incoming: `verification` decides, from the evidence alone, what a provider's callback may change; `tokens` and
`signatures` produce the evidence. Outgoing: `events` names the events and renders their bodies, `signatures` signs
them, and `retry_policy` decides from a receiver's response when the next attempt is due.
"""
