"""Text is shown only when it is sure: no half characters, no beginnings of stop strings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.text.stopping import TextStream

portions = st.lists(st.integers(1, 7), min_size=1)


def shown(data: bytes, sizes: list[int], stops: list[str]) -> tuple[list[str], TextStream]:
    """Feed `data` in portions of `sizes`, over and over."""
    stream, pieces, at, n = TextStream(stops), [], 0, 0
    while at < len(data):
        size = sizes[n % len(sizes)]
        pieces.append(stream.feed(data[at : at + size]))
        at, n = at + size, n + 1
    return [*pieces, stream.feed(b"", final=True)], stream


@given(st.text(), portions)
def test_valid_text_comes_out_whole_however_it_is_split(text: str, sizes: list[int]) -> None:
    pieces, _ = shown(text.encode("utf-8", "surrogatepass").decode("utf-8", "ignore").encode(), sizes, [])
    assert "".join(pieces) == text.encode("utf-8", "surrogatepass").decode("utf-8", "ignore")
    assert "�" in text or not any("�" in piece for piece in pieces)


@given(st.binary(max_size=40), portions)
def test_invalid_bytes_are_replaced_alike_however_they_are_split(data: bytes, sizes: list[int]) -> None:
    once, _ = shown(data, [len(data) + 1], [])
    pieces, _ = shown(data, sizes, [])
    assert "".join(pieces) == "".join(once)
    assert data.decode("utf-8", "replace").startswith("".join(pieces))


@given(st.text(min_size=1), st.integers(1, 3))
def test_half_a_character_at_the_end_is_dropped(text: str, n_cut: int) -> None:
    data = text.encode("utf-8", "ignore") + "🙂".encode()[:n_cut]
    assert "".join(shown(data, [3], [])[0]) == text.encode("utf-8", "ignore").decode()


@given(
    st.text("abcé🙂", max_size=30),
    st.lists(st.text("abcé🙂", min_size=1, max_size=4), max_size=3),
    portions,
)
def test_the_text_ends_before_the_stop_string_that_is_complete_first(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    ends = [
        (text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text
    ]  # reading letter by letter
    wanted = text[: min(ends)[1]] if ends else text
    pieces, stream = shown(text.encode(), sizes, stops)
    assert "".join(pieces) == wanted
    assert stream.stopped == bool(ends)


@given(st.text("abx", max_size=30), st.lists(st.text("abx", min_size=1, max_size=5), min_size=1, max_size=3), portions)
def test_what_was_shown_is_never_taken_back(text: str, stops: list[str], sizes: list[int]) -> None:
    final = "".join(shown(text.encode(), sizes, stops)[0])
    stream, so_far = TextStream(stops), ""
    for letter in text:
        so_far += stream.feed(letter.encode())
        assert final.startswith(so_far)


def test_a_stop_string_is_found_across_token_borders() -> None:
    stream = TextStream(["\n\nUser:"])
    assert [stream.feed(piece) for piece in (b"Hi.", b"\n", b"\nUs", b"er", b": more", b"x")] == [
        "Hi.", "", "", "", "", "",
    ]  # fmt: skip
    assert stream.stopped


def test_text_that_only_looked_like_a_stop_string_is_shown() -> None:
    stream = TextStream(["\n\nUser:", ""])
    assert [stream.feed(piece) for piece in (b"a\n", b"\nUs", b"ual", b"\n")] == ["a", "", "\n\nUsual", ""]
    assert stream.feed(b"", final=True) == "\n"


def test_nothing_comes_after_the_stop_string() -> None:
    stream = TextStream(["b"])
    assert stream.feed(b"ab") == "a"
    assert stream.feed(b"c", final=True) == ""
