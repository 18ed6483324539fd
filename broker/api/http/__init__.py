"""HTTP parts that every dialect shares: endpoints, authentication, responses, errors, bodies, pages, OpenAPI."""
