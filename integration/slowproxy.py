#!/usr/bin/env python3
"""slowproxy.py PORT BYTES-PER-SECOND [BYTES]: passes connections on to PORT of this machine, slowly towards the client.

It prints the port that it listens on. With BYTES it breaks off after so many of one connection.
"""

import socket
import sys
import threading
import time

PORT, RATE = int(sys.argv[1]), int(sys.argv[2])
LIMIT = int(sys.argv[3]) if len(sys.argv) > 3 else None


def pump(source, target, rate, limit):
    total = 0
    try:
        while True:
            data = source.recv(min(65536, max(1, rate // 20)) if rate else 65536)
            if not data:
                break
            total += len(data)
            if limit is not None and total > limit:
                break
            target.sendall(data)
            if rate:
                time.sleep(len(data) / rate)
    except OSError:
        pass
    for s in (source, target):
        try:
            s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    client, _ = server.accept()
    upstream = socket.create_connection(("127.0.0.1", PORT))
    threading.Thread(target=pump, args=(client, upstream, 0, None), daemon=True).start()
    threading.Thread(target=pump, args=(upstream, client, RATE, LIMIT), daemon=True).start()
