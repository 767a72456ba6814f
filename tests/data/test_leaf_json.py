"""The streaming reader against json.loads, and what it says about damaged files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.data.leaf_json import read_file, read_split, read_user, split_files

_SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_values = st.one_of(
    st.floats(allow_nan=False, allow_subnormal=False),  # other tests flush them to zero
    st.integers(),
    st.text(max_size=8),
    st.lists(st.floats(0, 1, allow_subnormal=False), max_size=4),
)
_names = st.one_of(st.text(max_size=6), st.text(alphabet='"\\{}[]:, é\u2028\U0001f600', max_size=6))


@st.composite
def _files(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    """A LEAF object with its keys in any order, and one of the ways to write it down."""
    users = {}
    for name in draw(st.lists(_names, unique=True, max_size=4)):
        x = draw(st.lists(_values, max_size=5))
        record = {"x": x, "y": draw(st.lists(_values, min_size=len(x), max_size=len(x)))}
        users[name] = dict(draw(st.permutations(list(record.items()))))
    content = {
        "users": list(users),
        "num_samples": [len(record["y"]) for record in users.values()],
        "user_data": users,
        "hierarchies": [[name, {"}": "]"}] for name in users],
    }
    keys = draw(st.permutations(["user_data", *draw(st.sets(st.sampled_from(sorted(content))))]))
    content = {key: content[key] for key in dict.fromkeys(keys)}
    separators = (draw(st.sampled_from([",", ", ", "\n ,\t"])), draw(st.sampled_from([":", ": ", " :\r\n"])))
    text = json.dumps(
        content,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 1])),
        separators=separators,
    )
    return content, text


def _read(file: Path, chunk_size: int = 1 << 20) -> list[tuple[str, list[Any], list[Any]]]:
    return [(user.name, user.x, user.y) for user in read_file(file, chunk_size=chunk_size)]


@_SETTINGS
@given(written=_files(), chunk_size=st.integers(1, 40), space=st.sampled_from(["", " ", "\r\n\t"]))
def test_any_file_reads_as_json_reads_it(
    tmp_path: Path, written: tuple[dict[str, Any], str], chunk_size: int, space: str
) -> None:
    content, text = written
    file = tmp_path / "a.json"
    file.write_bytes((space + text + space).encode())
    expected = [(name, record["x"], record["y"]) for name, record in json.loads(text)["user_data"].items()]
    assert expected == [(name, record["x"], record["y"]) for name, record in content["user_data"].items()]
    assert _read(file, chunk_size) == expected
    groups: dict[str, str] = {}
    users = list(read_file(file, groups, chunk_size=chunk_size))
    assert groups == {
        name: json.dumps(group)
        for name, group in zip(content["user_data"], content.get("hierarchies", []), strict=False)
    }
    assert [read_user(user.name, user.file, user.start, user.stop) for user in reversed(users)] == users[::-1]


@_SETTINGS
@given(written=_files(), chunk_size=st.integers(1, 40), data=st.data())
def test_a_file_cut_anywhere_is_refused_with_its_length(
    tmp_path: Path, written: tuple[dict[str, Any], str], chunk_size: int, data: st.DataObject
) -> None:
    raw = written[1].encode()
    length = data.draw(st.integers(0, len(raw) - 1))
    file = tmp_path / "a.json"
    file.write_bytes(raw[:length])
    with pytest.raises(ValueError, match=f"a.json is cut short: it ends at byte {length}"):
        _read(file, chunk_size)


@_SETTINGS
@given(written=_files(), data=st.data())
def test_a_changed_byte_never_ends_in_another_error(
    tmp_path: Path, written: tuple[dict[str, Any], str], data: st.DataObject
) -> None:
    raw = bytearray(written[1].encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / "a.json"
    file.write_bytes(raw)
    try:
        json.loads(raw)
        valid = True
    except ValueError:
        valid = False
    message = ""
    try:
        _read(file, 7)
    except ValueError as error:
        message = str(error)
    assert valid if not message else "a.json" in message
    assert "\n" not in message


_DATA = '"user_data": {"ann": {"x": [1, 2], "y": [0, 1]}, "bob": {"x": [3], "y": [1]}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{" + _DATA + "} x", "not LEAF's JSON at byte 80 .the file goes on after its end"),
        ("[1]", r"not LEAF's JSON at byte 0 \({ is expected\)"),
        ('{"user_data": {"ann": {"x": [1 2], "y": []}}}', r"byte 31 in user 'ann' \(Expecting ',' delimiter"),
        ('{"user_data": {"é": {"x": [tru], "y": []}}}', "byte 28 in user 'é' .Expecting value"),
        ("{}", "a.json has no user_data"),
        ('{"user_data": {"ann": {"x": [1]}}}', 'user \'ann\' is not an object with lists "x" and "y"'),
        ('{"user_data": {"ann": 3}}', "user 'ann' is not an object with lists"),
        ('{"user_data": {"ann": {"x": [1, 2], "y": [0]}}}', r"'ann' has 2 inputs \(x\) but 1 targets \(y\)"),
        (
            '{"user_data": {"ann": {"x": [], "y": []}, "ann": {"x": [], "y": []}}}',
            "'ann' stands in user_data twice",
        ),
        (
            "{" + _DATA + ', "users": ["ann"]}',
            "user 'bob' is 0 times in \"users\" and 1 times in user_data",
        ),
        (
            '{"users": ["ann", "bob", "cy"], ' + _DATA + "}",
            "user 'cy' is 1 times in \"users\" and 0 times in",
        ),
        ('{"users": ["ann", "bob", "bob"], ' + _DATA + "}", "user 'bob' is 2 times in \"users\""),
        ('{"users": 3, ' + _DATA + "}", '"users" is not a list of names'),
        (
            '{"users": ["bob", "ann"], "num_samples": [2, 1], ' + _DATA + "}",
            "num_samples says 2 for user 'bob', who has 1 samples",
        ),
        ("{" + _DATA + ', "num_samples": [2]}', "num_samples is not a list of 2 numbers"),
    ],
)
def test_each_fault_is_named_with_file_and_user(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        _read(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'{"user_data": {"ann": {"x": ["\xff"], "y": [0]}}}')
    with pytest.raises(ValueError, match=r"byte 30 in user 'ann' \(invalid start byte\)"):
        _read(file)


def test_the_window_holds_one_user_and_not_the_file(tmp_path: Path) -> None:
    # 200 users of 20 kB: with 1 kB chunks the reader must never have read much past the user that it gives.
    text = json.dumps({"user_data": {str(i): {"x": [0.25] * 3000, "y": [0] * 3000} for i in range(200)}})
    file = tmp_path / "a.json"
    file.write_text(text)
    users = read_file(file, chunk_size=1000)
    next(users)
    assert users.gi_frame.f_locals["stream"].tell() < 60_000 < len(text)  # type: ignore[attr-defined]
    users.close()  # type: ignore[attr-defined]


def test_a_user_in_two_files_is_named_with_both(tmp_path: Path) -> None:
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    for file in (one, two):
        file.write_text("{" + _DATA + "}")
    with pytest.raises(ValueError, match=f"'ann' stands in {one} and in {two}: remove one"):
        list(read_split([one, two]))


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: set data.root"):
        split_files(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has neither train/ nor data/train/: set data.root"):
        split_files(tmp_path)
    (tmp_path / "data" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no .json file in .*/data/train: run LEAF's preprocess.sh"):
        split_files(tmp_path)
    (tmp_path / "data" / "train" / "a.json").touch()
    with pytest.raises(FileNotFoundError, match=r"no .json file in .*/data/test: run LEAF's preprocess.sh"):
        split_files(tmp_path)
