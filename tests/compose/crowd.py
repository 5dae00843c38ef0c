#!/usr/bin/env python3
"""People in one room, for as long as the file HOLD is there.

    crowd.py HOST HTTP_PORT PEOPLE HOLD [SECONDS]

Half of them come by TCP, half by WebSocket, always where getImConfig says. Who
loses the connection comes back with what was heard last. One of them speaks
five times a second and repeats under the same name until it is receipted.

When HOLD is gone (or after SECONDS) everybody stays until the last message is
heard; then what each heard is compared with what was receipted: all of it, in
order, and nothing twice that one had not been away for. Exits 1 otherwise.
Needs nothing but Python.
"""

import asyncio
import base64
import json
import os
import struct
import sys
import time
import urllib.parse
import urllib.request

APP = 10001
MAGIC = 18673
# How long a step may take before the client tries again, as a phone would.
PATIENCE = 10
# How long the last message may take to reach everybody: an election, a burial.
FINISH = 60


class Site:
    """The HTTP side, as one person sees it."""

    def __init__(self, base):
        self.base = base
        self.cookie = None

    def ask(self, path, **params):
        request = urllib.request.Request(
            self.base + path, urllib.parse.urlencode(params).encode(), method="POST"
        )
        if self.cookie:
            request.add_header("Cookie", "qytk=" + self.cookie)
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            for header in reply.headers.get_all("Set-Cookie") or []:
                if header.startswith("qytk="):
                    self.cookie = header.split(";")[0][len("qytk="):]
            answer = json.load(reply)
        if answer["code"] != 200:
            raise OSError(f"{path}: {answer}")
        return answer["data"]


class Tcp:
    """The seed's framing."""

    @classmethod
    async def open(cls, config, room, last):
        host, port = config["tcpImServerAddress"].rsplit(":", 1)
        line = cls()
        line.reader, line.writer = await asyncio.open_connection(host, int(port))
        body = {"appId": APP, "userId": config["userId"], "token": config["token"], "roomId": room}
        if last:
            body["lastMsgId"] = str(last)
        await line.send(1001, body)
        return line

    async def send(self, code, body):
        raw = json.dumps(body).encode()
        self.writer.write(struct.pack(">hii", MAGIC, code, len(raw)) + raw)
        await self.writer.drain()

    async def receive(self):
        magic, code, length = struct.unpack(">hii", await self.reader.readexactly(10))
        assert magic == MAGIC
        return code, json.loads(await self.reader.readexactly(length) or b"{}")


class WebSocket:
    """Just enough of RFC 6455."""

    @classmethod
    async def open(cls, config, room, last):
        address = config["wsImServerAddress"]
        host, port = address.rsplit(":", 1)
        line = cls()
        line.reader, line.writer = await asyncio.open_connection(host, int(port))
        path = f"/{config['token']}/{config['userId']}/1001/{room}"
        path += f"?lastMsgId={last}" if last else ""
        key = base64.b64encode(os.urandom(16)).decode()
        line.writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = await line.reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise OSError(head.split(b"\r\n")[0].decode())
        return line

    async def send(self, code, body):
        await self.write(1, json.dumps({"code": code, "body": json.dumps(body)}).encode())

    async def write(self, kind, raw):
        mask = os.urandom(4)
        head = bytes([0x80 | kind])
        if len(raw) < 126:
            head += bytes([0x80 | len(raw)])
        else:
            head += bytes([0x80 | 126]) + struct.pack(">H", len(raw))
        self.writer.write(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(raw)))
        await self.writer.drain()

    async def receive(self):
        while True:
            first, second = await self.reader.readexactly(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", await self.reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", await self.reader.readexactly(8))
            raw = await self.reader.readexactly(length)
            if first & 0x0F == 1:
                frame = json.loads(raw)
                return frame["code"], json.loads(frame["body"] or "{}")
            if first & 0x0F == 8:
                raise ConnectionError("closed: " + raw[2:].decode())
            if first & 0x0F == 9:
                await self.write(10, raw)


class Person:
    def __init__(self, number, base, room):
        self.number, self.room = number, room
        self.kind = [Tcp, WebSocket][number % 2]
        self.site = Site(base)
        self.line, self.inside = None, asyncio.Event()
        self.last = 0
        self.heard, self.ids = [], []  # texts; msgIds
        self.arrivals = {}  # text: when
        self.repeats_at_home = self.reconnects = self.unrecovered = 0
        self.since_return = set()
        self.receipts = {}
        self.trouble = ""

    async def live(self):
        while True:
            try:
                await self.visit()
            except (OSError, EOFError, AssertionError, asyncio.TimeoutError) as error:
                self.trouble = f"{type(error).__name__}: {error}"
            if self.line:
                self.line.writer.close()
            if self.inside.is_set():
                self.reconnects += 1
            self.inside.clear()
            for done in self.receipts.values():
                if not done.done():
                    done.set_result(None)  # it is asked again where one is next
            await asyncio.sleep(0.3)

    async def visit(self):
        loop = asyncio.get_running_loop()
        if not self.site.cookie:
            name = f"person {self.number}"
            await loop.run_in_executor(None, lambda: self.site.ask("/user/login", nickName=name))
        config = await loop.run_in_executor(None, lambda: self.site.ask("/im/getImConfig"))
        opening = self.kind.open(config, self.room, self.last)
        self.line = await asyncio.wait_for(opening, PATIENCE)
        beat = asyncio.create_task(self.beat())
        try:
            while True:
                # Heartbeats are answered, so silence is a dead line.
                code, body = await asyncio.wait_for(self.line.receive(), PATIENCE)
                await self.meet(code, body)
        finally:
            beat.cancel()

    async def beat(self):
        while True:
            await asyncio.sleep(PATIENCE / 3)
            if self.inside.is_set():
                await self.line.send(1004, {})

    async def meet(self, code, body):
        if code == 1001:
            if body.get("data") != "true":
                raise OSError(f"login refused: {body}")
            self.unrecovered += body.get("recovered") is False
            self.last = self.last or int(body["msgId"])
            self.since_return = set()
            self.inside.set()
        elif code == 1003 and body.get("msgId"):
            await self.line.send(1005, {"msgId": body["msgId"]})
            self.hear(int(body["msgId"]), json.loads(body["data"]))
        elif code == 1006:
            done = self.receipts.pop(body.get("clientMsgId"), None)
            if done and not done.done():
                done.set_result(int(body["msgId"]) if body["data"] == "true" else None)

    def hear(self, msg_id, data):
        if msg_id in self.since_return:
            self.repeats_at_home += 1
        self.since_return.add(msg_id)
        if self.last < msg_id:
            self.last = msg_id
        if "content" in data and msg_id not in self.ids:
            self.ids.append(msg_id)
            self.heard.append(data["content"])
            self.arrivals[data["content"]] = time.monotonic()

    async def say(self, text):
        """Until it is receipted. The same name each time, so it is said once."""
        while True:
            await self.inside.wait()
            done = asyncio.get_running_loop().create_future()
            self.receipts[text] = done
            data = json.dumps({"roomId": self.room, "content": text})
            try:
                await self.line.send(1003, {"bizCode": 5555, "clientMsgId": text, "data": data})
                if msg_id := await asyncio.wait_for(done, PATIENCE):
                    return msg_id
            except (OSError, asyncio.TimeoutError):
                pass
            await asyncio.sleep(0.1)


async def main():
    host, port, people, hold = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    until = time.monotonic() + float(sys.argv[5]) if 5 < len(sys.argv) else None
    base = f"http://{host}:{port}"
    anchor = Site(base)
    anchor.ask("/user/login", nickName="anchor", vip="true")
    room = anchor.ask("/living/startingLiving", type="1", roomName="crowd")["roomId"]
    persons = [Person(number, base, room) for number in range(people)]
    lives = [asyncio.create_task(person.live()) for person in persons]
    for person in persons:
        try:
            await asyncio.wait_for(person.inside.wait(), FINISH)
        except asyncio.TimeoutError:
            sys.exit(f"person {person.number} did not get in: {person.trouble}")
    print(f"{people} people are in room {room}", flush=True)

    speaker, listeners = persons[0], persons[1:]
    said, sent, took = [], {}, []
    run = base64.b16encode(os.urandom(3)).decode()
    while os.path.exists(hold) and (until is None or time.monotonic() < until):
        text = f"{run}-{len(said)}"
        sent[text] = time.monotonic()
        await speaker.say(text)
        took.append(time.monotonic() - sent[text])
        said.append(text)
        await asyncio.sleep(0.2)
    deadline = time.monotonic() + FINISH
    while time.monotonic() < deadline and any(said[-1] not in p.arrivals for p in listeners):
        await asyncio.sleep(0.1)
    for life in lives:
        life.cancel()

    bad = 0
    for person in listeners:
        missing = [text for text in said if text not in person.arrivals]
        first = [text for text in person.heard if text in sent]
        in_order = first == [text for text in said if text in person.arrivals]
        if missing or not in_order:
            bad += 1
            print(f"person {person.number} ({person.kind.__name__}): {len(missing)} missing "
                  f"{missing[:5]}, in order: {in_order}, {person.trouble}")
    longest = max(p.arrivals[t] - sent[t] for p in listeners for t in p.arrivals if t in sent)
    print(
        f"said and receipted {len(said)}, heard {sum(len(p.heard) for p in listeners)} of "
        f"{len(said) * len(listeners)}; came back {sum(p.reconnects for p in persons)} times "
        f"({sum(p.unrecovered for p in persons)} not recovered), "
        f"{sum(p.repeats_at_home for p in persons)} repeats; longest wait for a receipt "
        f"{max(took):.1f} s, to be heard {longest:.1f} s"
    )
    anchor.ask("/living/closeLiving", roomId=room)
    sys.exit(1 if bad else 0)


asyncio.run(main())
