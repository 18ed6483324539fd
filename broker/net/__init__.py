"""Outgoing HTTP: `ApiClient` to providers that the operator chose, `Fetcher` to URLs that a caller or provider chose.

The only importer of httpx and httpcore on the server side. No proxies, cookies, netrc, automatic redirects or
decompression (a few hundred kilobytes can inflate to 250 MB); one request per call, never a retry. Error messages hold
no query, header or body, because they may be secrets; for the same reason library errors are not chained (`from None`).
"""
