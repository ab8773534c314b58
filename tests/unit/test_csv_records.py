"""Records of a CSV stream know where they stand, whatever the quoting, the encoding and the line ends."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.jobs import csv_records
from consumers.jobs.csv_payloads import ImportFile
from consumers.jobs.csv_records import Dialect, find_dialect, header, records
from consumers.outcome import Permanent

UTF8 = Dialect("utf-8", ",")


class Trickle(io.BytesIO):
    """Gives three bytes at a time, so that every boundary falls in the middle of something."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(3 if size and size > 0 else size)


def read(content: bytes, dialect: Dialect = UTF8, start: int = 0):
    return list(records(io.BytesIO(content[start:]), dialect, start=start))


def test_a_newline_in_quotes_ends_no_record():
    found = read(b'a,"one\ntwo",c\n\n"say ""hi""",5\nlast,1')
    assert [list(record.fields) for record in found] == [["a", "one\ntwo", "c"], ['say "hi"', "5"], ["last", "1"]]
    assert [(record.line, record.next_line) for record in found] == [(1, 3), (4, 5), (5, 6)]


def test_a_stray_quote_spoils_its_own_record_alone():
    found = read(b'1,ok\n2,"broken"x\n3,5" pipe\n4,ok\n')
    assert [bool(record.flaw) for record in found] == [False, True, False, False]
    assert found[2].fields == ["3", '5" pipe']


def test_a_quote_that_is_never_closed_is_a_flaw():
    found = read(b'1,ok\n2,"open\n3,x\n')
    assert [bool(record.flaw) for record in found] == [False, True]


def test_bytes_that_are_no_text_spoil_their_own_record_alone():
    found = read("1,Jörg\n".encode("latin-1") + "2,Jörg\n".encode())
    assert found[0].flaw is not None
    assert "not utf-8" in found[0].flaw
    assert found[1].fields == ["2", "Jörg"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "latin-1", "cp1252", "utf-32-le"])
def test_every_part_of_a_file_can_be_read_alone(encoding):
    """From any record's end on come the same records: also where the bytes of a newline are part of a character."""
    text = 'n;name\r\n1;"Bö;\r\nrg"\r\n2;\r\n\r\n3;é\r\n'
    if encoding.startswith("utf"):
        text += "4;\u0a0a\u0a00\u0d0a\u010a\r\n"
    content = text.encode(encoding)
    dialect = Dialect(encoding, ";")
    whole = read(content, dialect)
    assert [list(r.fields) for r in whole] == list(
        filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=";"))
    )
    trickled = list(records(Trickle(content), dialect, start=0))
    assert trickled == whole
    for place, record in enumerate(whole):
        rest = list(records(io.BytesIO(content[record.end :]), dialect, start=record.end, line=record.next_line))
        assert rest == whole[place + 1 :]


@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=2, max_size=4)
    )
)
def test_what_csv_has_written_is_read_back(rows):
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    content = out.getvalue().encode()
    found = list(records(Trickle(content), UTF8, start=0))
    assert [list(record.fields) for record in found] == rows
    assert b"".join(record.content for record in found) == content


def test_a_line_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(csv_records, "LONGEST_LINE", 1000)
    with pytest.raises(Permanent, match="line ends"):
        read(b"a" * 5000)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"\xef\xbb\xbfa,b\n", Dialect("utf-8", ",", 3)),
        ("\ufeffa\tb\n".encode("utf-16-le"), Dialect("utf-16-le", "\t", 2)),
        ("\ufeffa|b\n".encode("utf-16-be"), Dialect("utf-16-be", "|", 2)),
        (b'a;"b,c,d,e";f\n', Dialect("utf-8", ";")),
        (b"alone\n", Dialect("utf-8", ",")),
        (b"", Dialect("utf-8", ",")),
    ],
)
def test_a_file_says_what_it_is(start, expected):
    assert find_dialect(start, "utf-8-sig", None) == expected


def test_utf_16_needs_a_mark_or_an_order():
    with pytest.raises(Permanent, match="utf-16-le"):
        find_dialect("a,b".encode("utf-16-le"), "utf-16", None)


@pytest.mark.parametrize("fields", [["a", "a", "n"], ["n", "", ""], ["other"]])
def test_a_header_must_fit(fields):
    with pytest.raises(Permanent, match="the header has"):
        header(fields, ["n"])
    assert header([" n ", "x"], ["n"]) == ["n", "x"]


@pytest.mark.parametrize("encoding", ["base64", "no-such", ""])
def test_an_encoding_is_checked_where_the_job_is_made(encoding):
    with pytest.raises(ValueError, match="no text encoding"):
        ImportFile(source="a.csv", encoding=encoding)
