"""Everything that survives a restart; knows nothing of providers, callers or HTTP.

Decisions worth remembering

* A transaction is a value: a list of statements, each with what it must change, handed over whole
  (`Database.transact`). A `begin … commit` block invites somebody to await a provider in the middle, and it
  cannot be grouped; a list can be put into one commit with everybody else's and runs the same on Postgres.
  Reconsider if a statement ever needs a value that only the statement before it can tell.
* A blob belongs to an owner (a task, or the task whose order brought the reference). Within an owner it is
  named by its hash, so a repeated download is the same file, and retention removes an owner without counting
  references.
"""
