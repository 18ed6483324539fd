"""The steps of tasks: a module per state with I/O, the table of all, and one for the callback inbox.

A step does the I/O of its state, lets `lifecycle` decide, and applies the decision through `transitions`. No
transaction stays open across the network.
"""
