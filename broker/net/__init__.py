"""Outgoing HTTP: `ApiClient` to providers that the operator chose, `Fetcher` to URLs that a caller or provider chose.

Both speak HTTP/1.1 over connections of their own, with the parser of httptools:

    ApiClient, Fetcher → ConnectionPool → Dialer → HttpConnection → ResponseParser

A general client costs four to eight times as much per request, and leaves less say in what is sent when: which error
means that no byte has left decides whether an order may be repeated. No proxies, cookies, netrc, automatic redirects or
decompression (a few hundred kilobytes can inflate to 250 MB); one request per call, never a retry but of a download
whose kept connection had ended. Error messages hold no query, header or body, because they may be secrets; for the same
reason library errors are not chained (`from None`).
"""
