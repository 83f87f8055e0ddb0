"""The HTTP API: routes that read a request, call one service and answer. No rule lives here."""
