"""What goes between a remote reward and its server: it is read as it was sent, and damage is a line."""

import json
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flow_factory.rewards.exchange import Wrong
from flow_factory.rewards.link import scores_in
from flow_factory.rewards.service.reading import unpacked
from flow_factory.rewards.wire import JSON, MSGPACK, MULTIPART, WireError, packed, request_of
from tests.rewards.remote import body
from tests.rewards.reward_set import pictures


@pytest.mark.parametrize(("kind", "form"), [(MSGPACK, "raw"), (MULTIPART, "raw"), (MULTIPART, "png"), (JSON, "png")])
def test_what_is_read_is_what_was_sent(kind: str, form: str) -> None:
    many = pictures(6)
    fields: dict[str, Any] = {
        "prompt": ["a — b", ""], "image": many[:2], "video": [many[:3], many[3:4]], "condition_images": [[], many[4:]],
        "condition_videos": [[many[:2]], []], "tags": [["a", {"b": 1}], None], "size": [1, 0.1],
    }  # fmt: skip
    sound = np.random.default_rng(0).uniform(-1, 1, (2, 2, 7)).astype(np.float32)
    fields |= {"audio": list(sound), "audio_sample_rate": [16000, 8000]} if kind != JSON else {}
    read = unpacked(*packed(request_of("it", fields, form), kind))
    assert (read.id, read.n, set(read.fields)) == ("it" if kind != JSON else "", 2, set(fields))

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, list):
            return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, Image.Image):
            return a.size == b.size and a.tobytes() == b.tobytes()
        return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b

    assert all(same(values, read.fields[name]) for name, values in fields.items())


def test_a_picture_as_jpeg_is_nearly_itself_and_a_column_that_is_no_plain_value_is_named() -> None:
    image = Image.new("RGB", (32, 32), (200, 40, 90))
    (read,) = unpacked(*packed(request_of("it", {"prompt": [""], "image": [image]}, "jpeg"), MSGPACK)).fields["image"]
    assert np.abs(np.asarray(read, int) - np.asarray(image, int)).max() < 8
    for value in (object(), b"x", {1: 2}, 2**70, np.float32(1)):
        with pytest.raises(WireError, match="the column 'odd' has a value that cannot be sent"):
            request_of("it", {"prompt": [""], "odd": [value]}, "raw")


@pytest.mark.parametrize("kind", [MSGPACK, MULTIPART, JSON])
def test_a_damaged_body_is_refused_in_a_line_or_read_and_nothing_else(kind: str) -> None:
    luck, (name, whole) = random.Random(0), body(kind=kind)
    refused = 0
    for _ in range(300):
        spoilt = bytearray(whole)
        for _ in range(luck.randint(1, 4)):
            spoilt[luck.randrange(len(spoilt))] = luck.randrange(256)
        try:
            unpacked(name, bytes(spoilt[: luck.choice([len(spoilt), luck.randrange(len(spoilt))])]))
        except WireError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 300
    assert refused > 100
    for content in (b"", b"null", b"[]", b"{}", b'{"prompt": 1}', b'{"prompt": [1]}', b'{"prompt": ["a"], "image": [[1]]}', b"[" * 100_000):
        with pytest.raises(WireError):
            unpacked(kind if kind != MULTIPART else f"{MULTIPART}; boundary=x", content)


@pytest.mark.parametrize("scores", [[0.1, None], [1, -2.5]])
def test_a_right_answer_is_taken(scores: list[Any]) -> None:
    assert scores_in(json.dumps({"id": "a", "scores": scores, "more": 1}).encode(), "a", 2) == scores
    assert scores_in(json.dumps({"rewards": scores}).encode(), None, 2) == scores
    with pytest.raises(Wrong, match="answers an error: oh"):
        scores_in(b'{"rewards": [1, 2], "error": "oh"}', None, 2)
