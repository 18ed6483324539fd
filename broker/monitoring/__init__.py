"""Monitoring: values collected for the metrics page, event-loop lag, and the balance at the providers."""
