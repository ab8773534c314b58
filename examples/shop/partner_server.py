"""A payment provider and an ERP as one real HTTP server, which fails on purpose: `shop.troubles` says at which order.

    python -m shop.partner_server --port 8090

POST /charges                {"order", "cents"}: charges once for each Idempotency-Key; 402 where the card is declined
POST /charges/{key}/refund   gives back what was charged under that key; a charge of that key that comes later gets 409
PUT  /erp/orders/{id}        stores the order
POST /mend                   from now on no refund is refused
GET  /books                  what was charged, refunded and stored
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shop.troubles import trouble_of

HANG = 8.0
"""Seconds of silence: longer than anybody waits."""


class Books:
    """What the partners know. Every change is made under one lock; then the answer is sent, or is not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._charges: dict[str, dict[str, Any]] = {}
        self._erp: dict[str, int] = {}
        self._asked: Counter[str] = Counter()
        self._mended = False

    def charge(self, key: str, order: int, cents: int) -> tuple[int, dict[str, Any], str]:
        """Status and document of the answer, and what is to happen to it: "", "hangs" or "resets"."""
        trouble = trouble_of(order)
        what = trouble.removeprefix("charge-").removesuffix("-once") if trouble.startswith("charge-") else ""
        with self._lock:
            self._asked[key] += 1
            if trouble.endswith("-once") and self._asked[key] > 1:
                what = ""
            if trouble == "declined":
                return 402, {"error": "the card is declined"}, ""
            if what == "fails":
                return 500, {"error": "out of order"}, ""
            if key not in self._charges:
                self._charges[key] = {
                    "id": f"ch_{len(self._charges) + 1}",
                    "order": order,
                    "cents": cents,
                    "refunded": 0,
                }
            found = self._charges[key]
            if found["refunded"] or not found["cents"]:
                return 409, {"error": "this charge has been refunded"}, ""
            return 200, dict(found), what

    def refund(self, key: str) -> tuple[int, dict[str, Any], str]:
        with self._lock:
            found = self._charges.setdefault(key, {"id": "", "order": 0, "cents": 0, "refunded": 0})
            if trouble_of(found["order"]) == "refund-refused" and not self._mended:
                return 403, {"error": "refunds are switched off for this account"}, ""
            found["refunded"] = found["cents"]
            return 200, dict(found), ""

    def store(self, key: str, order: int, cents: int) -> tuple[int, dict[str, Any], str]:
        trouble = trouble_of(order)
        with self._lock:
            self._asked[key] += 1
            if trouble in {"erp-refuses", "refund-refused"}:
                return 422, {"error": "the period is closed"}, ""
            if trouble == "erp-busy-once" and self._asked[key] == 1:
                return 503, {"error": "busy"}, ""
            self._erp[str(order)] = cents
            return 200, {"stored": True}, ""

    def mend(self) -> tuple[int, dict[str, Any], str]:
        with self._lock:
            self._mended = True
            return 200, {"mended": True}, ""

    def show(self) -> tuple[int, dict[str, Any], str]:
        with self._lock:
            taken = [one for one in self._charges.values() if one["cents"]]
            return 200, {
                "charges": len(taken),
                "orders": len({one["order"] for one in taken}),
                "charged": sum(one["cents"] for one in taken),
                "refunded": sum(one["refunded"] for one in taken),
                "erp": dict(self._erp),
            }, ""  # fmt: skip


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int) -> None:
        self.books = Books()
        super().__init__(("127.0.0.1", port), Handler)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self.close_request(request)  # without a word before it: that is what makes a reset


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, document, fate = self._act(json.loads(body or b"{}"))
        if fate == "hangs":
            threading.Event().wait(HANG)
        if fate:
            # With this option close() sends a reset, whatever waits to be sent.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        answer = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _act(self, document: dict[str, Any]) -> tuple[int, dict[str, Any], str]:
        books, key = self.server.books, self.headers.get("Idempotency-Key", "")
        match self.command, *self.path.strip("/").split("/"):
            case "POST", "charges" if key:
                return books.charge(key, document["order"], document["cents"])
            case "POST", "charges", charge_key, "refund":
                return books.refund(charge_key)
            case "PUT", "erp", "orders", number:
                return books.store(key, int(number), document["cents"])
            case "POST", "mend":
                return books.mend()
            case "GET", "books":
                return books.show()
        return 404, {"error": "no such thing, or no Idempotency-Key"}, ""

    def log_message(self, *_: Any) -> None:
        """A line for each request would say nothing that the books do not."""


def main() -> None:
    parser = argparse.ArgumentParser(description="A payment provider and an ERP that fail on purpose.")
    parser.add_argument("--port", type=int, default=8090, help="0 takes a free one")
    server = Server(parser.parse_args().port)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"partners at http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main()
