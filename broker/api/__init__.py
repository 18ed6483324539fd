"""The HTTP API: endpoints, shared HTTP parts, and dialects. No module of it knows a provider."""
