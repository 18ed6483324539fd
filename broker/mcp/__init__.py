"""MCP server of a running broker: tools that never wait longer than a client's time-out (`broker mcp`).

`tools` has the tools, `images` the images that go in and come out, `calls` makes a repeated call the same order, and
`server` declares all of it to the official SDK.
"""
