"""The HTTP server: uvicorn with strict parsing, a deadline for every phase of a connection, and a bounded shutdown."""
