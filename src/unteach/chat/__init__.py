"""Two models side by side in the browser, on this machine alone."""

from unteach.chat.server import ChatServer, Side, serve

__all__ = ["ChatServer", "Side", "serve"]
