"""What must not hurt: manifests, pictures, texts, weights and stores that are damaged or meant ill, from a seed.

Nothing here is a file: all of it is generated. `watched` sees what code touches while it works on such things.
"""

import io
import json
import os
import random
import signal
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import FrameType

import audits
import nets
import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from probing.data.images import Preprocess
from probing.models.loading import LoadedModel

LIMIT_S = 10  # of CPU; on the clock six times that, for machines that have more to do
EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "../../outside",
    "/etc/passwd",
    "C:\\windows",
    "a\\..\\b",
    "~root",
    "$HOME",
    "%s%n",
    "{0.__class__}",
    "[/bold]",
    "[link=file:///etc]x[/link]",
    ":smile:",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202eevil\u2066",
    "\u0000",
    "\ud800",
    "\ufeff",
    "e\u0301" * 50,
    "\U0001d54f",
    "名前",
    "שלום",
    "$x_1$",
    "$\\frac{",
    "x" * 5000,
    "",
    " ",
    ".",
    "..",
    "con",
    "a\nb",
    "\u2028",
)


# Watching


class Hang(BaseException):
    """Something took longer than it may; no handler of errors must swallow it."""


_roots: list[tuple[str, ...]] = []
_seen: list[str] = []
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ONE_PATH = {"os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.truncate", "os.utime", "shutil.rmtree"}
_NEVER = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.bind",
    "socket.sendto",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.spawn",
    "os.startfile",
    "ctypes.dlopen",
    "pickle.find_class",
    "webbrowser.open",
)
_HARMLESS = ("/dev/null", "/proc/", "/sys/")
_SAFE_CLASSES = ("torch", "collections", "_codecs", "numpy", "builtins")


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _roots:
        return
    if (event == "open" and int(str(arguments[2] or 0)) & _WRITES) or event in _ONE_PATH:
        _touched(event, arguments[0])
    elif event in {"os.rename", "os.link", "os.symlink"}:
        for path in arguments[:2]:
            _touched(event, path)
    elif event in _NEVER:
        _seen.append(f"{event}{arguments!r:.200}")


def _touched(event: str, path: object) -> None:
    if isinstance(path, int):
        return
    name = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]  # noqa: PTH100 - no events of its own
    compiled = "__pycache__" in name or name.endswith((".nbi", ".nbc"))
    if not compiled and not name.startswith((*_roots[-1], *_HARMLESS)):
        _seen.append(f"{event} {name}")


sys.addaudithook(_hook)  # for good; it does nothing unless something is watched


@contextmanager
def watched(*writable: Path, limit: float = LIMIT_S) -> Iterator[None]:
    """Fail if what runs inside writes elsewhere, connects, starts a process, unpickles a class, or hangs."""

    def hang(number: int, frame: FrameType | None) -> None:
        raise Hang(f"longer than {limit} s")

    clocks = (
        (signal.SIGPROF, signal.ITIMER_PROF, limit),
        (signal.SIGALRM, signal.ITIMER_REAL, 6 * limit),
    )
    before = [signal.signal(number, hang) for number, _, _ in clocks]
    _seen.clear()
    _roots.append(tuple(str(path) for path in writable))
    for _, clock, most in clocks:
        signal.setitimer(clock, most)
    try:
        yield
    finally:
        for (number, clock, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)
        _roots.pop()
    if _seen:
        raise AssertionError(f"touched: {_seen}")


# Bytes


def mutated(data: bytes, rng: random.Random, most: int = 8) -> bytes:
    """Return bytes with up to so many flips, cuts, repeats and insertions."""
    for _ in range(rng.randint(1, most)):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 16, 200))
        part = data[at : at + length]
        new = rng.choice(
            [
                bytes(b ^ 1 << rng.randrange(8) for b in part),
                bytes(len(part)),
                b"\xff" * len(part),
                b"",
                part * 3,
                rng.randbytes(length) + part,
                rng.choice((b"\x00", b"\xff\xff\xff\x7f", b"\x80" * 4, b"99999999999", b"-1", b"'", b"&a ", b"*a ")) + part,
            ]
        )
        data = data[:at] + new + data[at + length :]
    return data if rng.random() < 0.8 else data[: rng.randrange(len(data) + 1)]


# YAML


def plain_text(value: object) -> bytes:
    """Return YAML of anything."""
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False).encode(errors="surrogatepass")


def odd_value(rng: random.Random) -> object:
    """Return a value that no schema expects here."""
    return rng.choice(
        [
            lambda: rng.choice(EVIL).replace("\ud800", ""),
            lambda: rng.choice([None, True, False, 0, -1, 2**63, 10**400, 1e308, float("nan"), float("-inf")]),
            list,
            dict,
            lambda: [[], [{}], "x"],
            lambda: {rng.choice(EVIL[:12]): 1, "b": [None]},
            lambda: "y" * 100_000,
            lambda: list(range(2000)),
            lambda: [["a.png", "0" * 64, "w", "x"]] * 200,
        ]
    )()


def twisted(value: object, rng: random.Random) -> object:
    """Return a tree with one node replaced, removed, repeated or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        found = dict(value)
        if rng.random() < 0.15:
            found[rng.choice([*EVIL[:20], "kind", "root", 7])] = found.pop(key)
        elif rng.random() < 0.15:
            del found[key]
        else:
            found[key] = twisted(value[key], rng)
        return found
    if isinstance(value, list) and value and rng.random() < 0.85:
        i = rng.randrange(len(value))
        item = twisted(value[i], rng)
        return [*value[:i], *([item] * rng.choice((0, 1, 1, 1, 2))), *value[i + 1 :]]
    return odd_value(rng)


def _bomb(levels: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@cache
def yaml_bombs() -> Mapping[str, bytes]:
    """Return whole files that are meant ill, by name."""
    head = "name: x\nlicence: x\nsource: x\nimages:\n  kind: files\n  columns: [file, sha256]\n  rows:\n"
    row = f"  - [a.png, '{'0' * 64}']\n"
    texts = {
        "aliases": _bomb(),
        "merge": "a: &a {b: 1}\nc: {<<: *a}",
        "alias of itself": "&a [*a]",
        "deep list": "[" * 200_000,
        "deep mapping": "{a: " * 50_000,
        "deep by lines": "\n".join(" " * i + "a:" for i in range(1500)),
        "python object": "name: !!python/object/apply:os.system ['touch owned']",
        "python name": "!!python/name:os.system",
        "tag": "!<tag:yaml.org,2002:python/object/new:subprocess.Popen> [[touch, owned]]",
        "binary": "name: !!binary aGVsbG8=",
        "set": "? a\n? b\n? [c, d]\n",
        "list as key": "? [a, b]\n: c\n",
        "date": "name: 2001-12-14t21:59:43.10-05:00\nlicence: 9999-99-99",
        "huge whole number": f"name: {'9' * 100_000}",
        "huge power": "name: 1e999999999\nlicence: 0x" + "f" * 50_000,
        "many documents": "---\na: 1\n" * 1000,
        "directives": "%YAML 9.9\n%TAG ! tag:evil,2000:\n---\n!x y",
        "a row again and again": head + row * 20_000,
        "values without end": head + "  - [1]\n" * 400_000,
        "keys without end": "".join(f"k{i}: 1\n" for i in range(60_000)),
        "one long text": "name: " + "x" * (10 << 20),
        "one long key": "x" * (10 << 20) + ": 1",
        "one long line of quotes": "'" * (1 << 20),
        "comment": "# " + "x" * (1 << 20),
        "block": "name: |\n" + " x\n" * 100_000,
        "nothing": "",
        "null": "~",
        "text": "just words",
        "tabs": "\tname:\t1",
        "control": "name: \x01\x02",
    }
    found = {name: text.encode() for name, text in texts.items()}
    return found | {
        "too long": b"x" * ((16 << 20) + 2),
        "utf-16": "name: ünï".encode("utf-16"),
        "utf-32": "name: ünï".encode("utf-32"),
        "latin-1": "name: ünï".encode("latin-1"),
        "byte order mark": "\ufeffname: x".encode(),
        "surrogate": "name: \ud800".encode(errors="surrogatepass"),
        "zeros": bytes(1000),
        "noise": random.Random(0).randbytes(4000),
        "picture": picture("PNG", "RGB"),
    }


# Pictures


def picture(kind: str, mode: str, size: tuple[int, int] = (9, 7), **options: object) -> bytes:
    """Return a picture's bytes."""
    rng = np.random.default_rng(0)
    if mode == "F":
        image = Image.fromarray(rng.random(size[::-1]).astype(np.float32))
    elif mode.startswith("I"):
        wide = rng.integers(0, 65535, size[::-1]).astype(np.uint16 if mode == "I;16" else np.int32)
        image = Image.fromarray(wide)
    else:
        image = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def animated(kind: str, frames: int = 3) -> bytes:
    """Return several pictures in one file."""
    images = [Image.new("RGB", (6, 6), (i * 40 % 256, 0, 0)) for i in range(frames)]
    out = io.BytesIO()
    images[0].save(out, kind, save_all=True, append_images=images[1:])
    return out.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
    """Return a PNG whose header says anything."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = _chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + more + body + _chunk(b"IEND", b"")


def _tiff(tags: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    """Return a TIFF of one directory; `following` is where the next one is said to be."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    head = struct.pack("<HI", 42, 8) + struct.pack("<H", len(tags))
    return b"II" + head + entries + struct.pack("<I", following) + bytes(100)


def _many_directories(count: int) -> bytes:
    first = [
        (256, 4, 1, 1),
        (257, 4, 1, 1),
        (258, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 200),
        (278, 4, 1, 1),
        (279, 4, 1, 1),
    ]
    start = len(_tiff(first)) + 10
    data = _tiff(first, start).ljust(start, b"\0")
    each = struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 1)
    size = len(each) + 4
    return data + b"".join(each + struct.pack("<I", start + (i + 1) * size if i + 1 < count else 0) for i in range(count))


@cache
def pictures() -> Mapping[str, bytes]:
    """Return pictures of all kinds, sound, odd and meant ill, by name with a suffix."""
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = Image.new("RGBA", (5, 5), (10, 20, 30, 0))
    out = io.BytesIO()
    alpha.quantize().save(out, "PNG", transparency=0)
    text = zlib.compress(bytes(64 << 20))
    ones = (256, 4, 1, 1)
    found = {
        "rgb.png": picture("PNG", "RGB"),
        "grey.png": picture("PNG", "L"),
        "bit.png": picture("PNG", "1"),
        "wide.png": picture("PNG", "I;16"),
        "palette.png": out.getvalue(),
        "alpha.png": picture("PNG", "RGBA"),
        "grey alpha.png": picture("PNG", "LA"),
        "photo.jpg": picture("JPEG", "RGB"),
        "upright.jpg": picture("JPEG", "RGB", exif=exif),
        "bad exif.jpg": picture("JPEG", "RGB", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "cut exif.jpg": picture("JPEG", "RGB", exif=exif.tobytes()[:20]),
        "print.jpg": picture("JPEG", "CMYK"),
        "steps.jpg": picture("JPEG", "RGB", progressive=True),
        "still.gif": picture("GIF", "P"),
        "moving.gif": animated("GIF"),
        "moving.png": animated("PNG"),
        "moving.webp": animated("WEBP"),
        "pages.tiff": animated("TIFF"),
        "still.webp": picture("WEBP", "RGB"),
        "plain.bmp": picture("BMP", "RGB"),
        "plain.ppm": picture("PPM", "RGB"),
        "plain.tiff": picture("TIFF", "RGB"),
        "packed.tiff": picture("TIFF", "RGB", compression="tiff_lzw"),
        "float.tiff": picture("TIFF", "F"),
        "wide.tiff": picture("TIFF", "I;16"),
        "whole numbers.tiff": picture("TIFF", "I"),
        "print.tiff": picture("TIFF", "CMYK"),
        "jpeg 2000.png": picture("JPEG2000", "RGB", (32, 32)),
        "huge.png": png(100_000, 100_000),
        "vast.png": png(2**31 - 1, 2**31 - 1),
        "nothing.png": png(0, 0),
        "flat.png": png(10, 0),
        "narrow.png": png(1, 60_000_000, 1, 0),
        "line.png": picture("PNG", "1", (1, 400_000)),
        "line.jpg": picture("JPEG", "L", (60_000, 1)),
        "deep.png": png(8, 8, 16, 7),
        "text.png": png(8, 8, more=_chunk(b"zTXt", b"a\0\0" + text)),
        "profile.png": png(8, 8, more=_chunk(b"iCCP", b"a\0\0" + text)),
        "texts.png": png(8, 8, more=_chunk(b"tEXt", b"a\0" + bytes(1000)) * 2000),
        "frames.png": png(8, 8, more=_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        "huge.gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02L\x01\x00;",
        "huge.bmp": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
        "upside down.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, -5, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
        "huge.ppm": b"P6 99999999 99999999 255\n" + bytes(30),
        "none.ppm": b"P6 0 0 255\n",
        "deep.ppm": b"P6 2 2 65535\n" + bytes(24),
        "odd.ppm": b"P6 2 2 0\n" + bytes(24),
        "digits.ppm": b"P3 2 2 255\n" + b"9" * 5_000_000,
        "huge.tiff": _tiff([(256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1)]),
        "counts.tiff": _tiff([ones, (257, 4, 1, 1), (273, 4, 2**31 - 1, 0)]),
        "loop.tiff": _tiff([ones, (257, 4, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 0)], 8),
        "directories.tiff": _many_directories(60_000),
        "vector.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1:9/'/></svg>",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(owned) (w) file closefile\n%%EOF",
        "page.jpg": b"<!doctype html><script>alert(1)</script>",
        "text.gif": b"#!/bin/sh\ntouch owned\n",
        "empty.png": b"",
        "zeros.jpg": bytes(5000),
        "start.jpg": picture("JPEG", "RGB")[:40],
        "noise.webp": b"RIFF\xff\xff\xff\xffWEBPVP8X" + bytes(40),
    }
    return found | {
        "as.jpg": found["rgb.png"],
        "as.gif": found["photo.jpg"],
        "both.png": found["rgb.png"] + found["photo.jpg"],
    }


@cache
def drawings() -> Mapping[str, bytes]:
    """Return SVG drawings that are meant ill, by name; `sound` is not."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">'
    all_over = '<rect width="9" height="9" '
    uses = "".join(f'<g id="a{i}">{f"""<use xlink:href="#a{i - 1}"/>""" * 10}</g>' for i in range(1, 9))
    filters = {
        "blur": '<feGaussianBlur stdDeviation="1000000"/>',
        "turbulence": '<feTurbulence numOctaves="1000000" baseFrequency="0.5"/>',
        "dilation": '<feMorphology operator="dilate" radius="100000"/>',
    }
    bodies = {name: f'<filter id="f">{f}</filter>{all_over}filter="url(#f)"/>' for name, f in filters.items()} | {
        "sound": f'{all_over}fill="red"/>',
        "uses": f'<defs><rect id="a0" width="1" height="1"/>{uses}</defs><use xlink:href="#a8"/>',
        "pattern": f'<pattern id="p" width="1e-5" height="1e-5">{all_over}/></pattern>{all_over}fill="url(#p)"/>',
        "dashes": '<path d="M0 0L1e9 0" stroke="red" stroke-dasharray="0.0001"/>',
        "deep": "<g>" * 100_000 + "</g>" * 100_000,
        "file": '<image href="file:///etc/hostname" width="9" height="9"/>',
        "address": '<image xlink:href="http://127.0.0.1:9/x.png" width="9" height="9"/>',
        "style": '<style>@import url("http://127.0.0.1:9/x");</style>',
        "script": "<script>alert(1)</script>",
        "open": "<g><g>",
    }
    found = {name: f"{head}{body}</svg>".encode() for name, body in bodies.items()}
    entity = f'<!DOCTYPE svg [<!ENTITY e SYSTEM "file:///etc/passwd">]>{head}<title>&e;</title></svg>'
    return found | {
        "entity": entity.encode(),
        "none": b"",
        "zeros": bytes(100),
        "huge": b" " * (5 << 20),
    }


# Weights


@cache
def weights() -> Mapping[str, bytes]:
    """Return weight files for `nets.ConvNet`, sound, odd and meant ill, by name with a suffix."""
    state = dict(nets.seeded(nets.ConvNet()).state_dict())
    name = "head.weight"

    def saved(value: object) -> bytes:
        out = io.BytesIO()
        torch.save(value, out)
        return out.getvalue()

    def tensors(header: object, data: bytes = bytes(64)) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    from safetensors.torch import save

    whole = save(state)
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    return {
        "sound.pt": saved(state),
        "sound.safetensors": whole,
        "code.pt": saved(_Runs()),
        "code inside.pt": saved(state | {"hook": _Runs()}),
        "module.pt": saved(nets.ConvNet()),
        "list.pt": saved([1, 2]),
        "number.pt": saved(3),
        "numbers as keys.pt": saved({1: torch.zeros(2), (2, 3): torch.ones(1)}),
        "complex.pt": saved(state | {name: torch.zeros(3, 5, dtype=torch.complex64)}),
        "truth.pt": saved(state | {name: torch.zeros(3, 5, dtype=torch.bool)}),
        "whole numbers.pt": saved(state | {name: torch.zeros(3, 5, dtype=torch.int64)}),
        "meta.pt": saved(state | {name: torch.zeros(3, 5, device="meta")}),
        "sparse.pt": saved(state | {name: torch.zeros(3, 5).to_sparse()}),
        "vast by a stride.pt": saved(state | {name: torch.zeros(1).expand(10**9, 10**3)}),
        "none.pt": b"",
        "text.pt": b"hello",
        "pickle.pt": b"cos\nsystem\n(S'touch owned'\ntR.",
        "old.pt": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        "zip.pt": _squeezed(saved(state)),
        "none.safetensors": b"",
        "long.safetensors": struct.pack("<Q", 2**63) + b"{}",
        "longer.safetensors": struct.pack("<Q", 99_000_000) + b"{}",
        "no text.safetensors": tensors(b"\xff\xfe"),
        "list.safetensors": tensors([]),
        "deep.safetensors": tensors(b"[" * 100_000),
        "negative.safetensors": tensors({"a": entry | {"shape": [-4]}}),
        "overflow.safetensors": tensors({"a": entry | {"shape": [2**62, 2**62]}}),
        "beyond.safetensors": tensors({"a": entry | {"data_offsets": [0, 2**40]}}),
        "backward.safetensors": tensors({"a": entry | {"data_offsets": [16, 0]}}),
        "overlap.safetensors": tensors({"a": entry, "b": entry}),
        "hole.safetensors": tensors({"a": entry | {"data_offsets": [48, 64]}}),
        "dtype.safetensors": tensors({"a": entry | {"dtype": "F9"}}),
        "small.safetensors": tensors({"a": {"dtype": "F4", "shape": [128], "data_offsets": [0, 64]}}),
        "eight bits.safetensors": tensors({"a": {"dtype": "F8_E8M0", "shape": [64], "data_offsets": [0, 64]}}),
        "evil names.safetensors": tensors({EVIL[19]: entry | {"shape": [16], "data_offsets": [0, 64]}}),
        "twice.safetensors": tensors(b'{"a":' + json.dumps(entry).encode() + b',"a":' + json.dumps(entry).encode() + b"}"),
    }


class _Runs:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch owned",)


def _squeezed(data: bytes) -> bytes:
    """Return a checkpoint whose archive is a bomb: one tensor's bytes are many zeros."""
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            content = old.read(item)
            new.writestr(item.filename, bytes(300 << 20) if item.filename.endswith("data/0") else content)
    return out.getvalue()


# Texts


def texts(rng: random.Random) -> Iterator[str]:
    """Yield texts that nobody writes, without end."""
    yield from EVIL
    yield "x" * (10 << 20)
    yield "word " * 3000
    yield "a " * 20 + "y" * (1 << 20)
    yield " ".join(EVIL)
    yield "good " + "".join(map(chr, range(32))) + " bad"
    while True:
        words = ["good", "bad", "so", *rng.choices(EVIL[:31], k=4)]
        words += [
            "".join(chr(rng.choice((rng.randrange(0x250), rng.randrange(0x110000)))) for _ in range(rng.randint(1, 9)))
            for _ in range(rng.randint(0, 6))
        ]
        rng.shuffle(words)
        yield rng.choice((" ", "", "\n", "\t ")).join(words)


# Models that command lines name

CLASSES = (*EVIL[:3], "plain")
PLAIN = Preprocess(size=8, resize=10, mean=(0.5,) * 3, std=(0.5,) * 3)


def net() -> LoadedModel:
    """Return a small network for pictures whose classes have names that are meant ill."""
    torch_net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 4),
    )
    return LoadedModel(nets.seeded(torch_net), transform=PLAIN, classes=CLASSES)


def feeling(given: list[str]) -> Tensor:
    """Return scores of texts: how often `good` stands in each, and `bad`."""
    return torch.tensor([[float(t.count("good")), float(t.count("bad")), len(t) % 7.0] for t in given])


def biased() -> LoadedModel:
    """Return the planted net of `audits` with classes whose names are meant ill."""
    return replace(audits.planted(), classes=EVIL[: len(audits.CLASSES)])
