"""Storage: everything that survives a restart. Independent of providers, callers and HTTP.

Decisions worth remembering

* A transaction is a value: a list of statements, each with what it must change, handed over at once
  (`Database.transact`). A `begin … commit` block invites awaiting a provider in the middle, and cannot be
  grouped; a list can share one commit with others and runs the same on Postgres. Reconsider if a statement ever needs
  a value that only the statement before it returns.
* A blob belongs to an owner (a task, or the task whose order brought the reference). Within an owner it is
  named by its hash, so a repeated download is the same file, and retention removes an owner without counting
  references.
"""
