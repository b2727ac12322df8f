//! Rows of separated fields: what separates them, where they end, whether the first is a header.

use std::cell::RefCell;
use std::ops::Range;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

use super::{Class, Layout, Unit};

/// Bytes of a text that are looked at for its form.
const SAMPLE: usize = 32 << 10;
const DELIMITERS: [u8; 4] = *b",\t;|";

/// Finds what separates the fields of a text's rows; `None` where it has no rows of equal length.
pub(super) fn delimiter(text: &str) -> Option<u8> {
    let sample = match text.len() <= SAMPLE {
        true => text,
        false => {
            let cut = (0..=SAMPLE)
                .rev()
                .find(|&i| text.is_char_boundary(i))
                .unwrap_or(0);
            // Whole lines only.
            &text[..text[..cut].rfind('\n').unwrap_or(0)]
        }
    };
    // A form needs two rows of two fields.
    if !sample.contains(['\n', '\r']) {
        return None;
    }
    let there = DELIMITERS.into_iter();
    let mut there = there.filter(|delimiter| sample.as_bytes().contains(delimiter));
    there.find(|&delimiter| {
        let counts = fields(sample, delimiter);
        let Some(&width) = counts.first() else {
            return false;
        };
        let equal = counts.iter().filter(|&&n| n == width).count();
        let spaced = sample
            .matches(&format!("{} ", char::from(delimiter)))
            .count();
        let all = sample.bytes().filter(|&b| b == delimiter).count().max(1);
        let enough = match width {
            0 | 1 => false,
            2 => counts.len() >= 3,
            _ => counts.len() >= 2,
        };
        // In prose a comma has a space after it.
        let tight = match delimiter {
            b',' | b';' => {
                spaced * 4 <= all
                    || (width >= 4
                        && counts.len() >= 5
                        && sample.len() <= 24 * (all + counts.len()))
            }
            b'|' => !sample.trim_start().starts_with('|'),
            _ => true,
        };
        // Rows may leave out empty fields at their end.
        let ragged =
            width >= 4 && counts.len() >= 5 && counts.iter().all(|&n| n <= width && n * 2 >= width);
        enough && tight && (equal * 100 >= counts.len() * 97 || ragged)
    })
}

thread_local! {
    /// A reader of each form: its tables take longer to make than a short text to read, and a clone loses some.
    static READERS: RefCell<[Reader; 4]> = RefCell::new(
        DELIMITERS.map(|delimiter| ReaderBuilder::new().delimiter(delimiter).build()),
    );
}

/// Calls `row` with the end of every row in the text and the number of its fields.
fn each_row(text: &str, delimiter: u8, row: impl FnMut(usize, usize)) {
    let Some(at) = DELIMITERS.iter().position(|&each| each == delimiter) else {
        return;
    };
    READERS.with_borrow_mut(|readers| {
        readers[at].reset();
        read_rows(&mut readers[at], text, row);
    });
}

fn read_rows(reader: &mut Reader, text: &str, mut row: impl FnMut(usize, usize)) {
    let (mut at, mut count) = (0, 0);
    // The fields themselves are not wanted, so their buffers are used again and again.
    let (mut out, mut ends) = ([0; 4096], [0; 256]);
    loop {
        let (result, read, _, ended) =
            reader.read_record(&text.as_bytes()[at..], &mut out, &mut ends);
        at += read;
        count += ended;
        match result {
            ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {}
            // No more input: an empty read says so, and ends the last row.
            ReadRecordResult::InputEmpty => {}
            ReadRecordResult::Record => {
                row(at, count);
                count = 0;
            }
            ReadRecordResult::End => return,
        }
    }
}

/// The number of fields of each row.
fn fields(text: &str, delimiter: u8) -> Vec<usize> {
    let mut counts = Vec::new();
    each_row(text, delimiter, |_, count| counts.push(count));
    counts
}

/// The rows of a text, without the line breaks between.
pub(super) fn rows(text: &str, delimiter: u8) -> Vec<Range<usize>> {
    let mut rows = Vec::new();
    let mut start = 0;
    each_row(text, delimiter, |end, _| {
        let own = &text[start..end];
        let lead = own.len() - own.trim_start_matches(['\n', '\r']).len();
        rows.push(start + lead..end);
        start = end;
    });
    rows
}

/// Whether the first row names the columns: no figure in it, nothing empty, nothing twice.
pub(super) fn has_header(text: &str, rows: &[Range<usize>], delimiter: u8) -> bool {
    let Some(first) = rows.first().filter(|_| rows.len() > 1) else {
        return false;
    };
    let mut names: Vec<&str> = text[first.clone()]
        .trim_end()
        .split(char::from(delimiter))
        .map(|name| name.trim().trim_matches('"'))
        .collect();
    let figure = |name: &&str| {
        name.is_empty()
            || name
                .starts_with(|c: char| c.is_numeric() || matches!(c, '-' | '+' | '.' | '$' | '€'))
    };
    if names.iter().any(figure) || names.len() < 2 {
        return false;
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    names.len() == count
}

/// Takes rows of fields apart: every row is whole and needs the header, if there is one.
pub(super) fn layout(text: &str) -> Layout {
    let delimiter = delimiter(text).unwrap_or(b',');
    let rows = rows(text, delimiter);
    let header = has_header(text, &rows, delimiter);
    let units = rows
        .into_iter()
        .enumerate()
        .map(|(i, range)| Unit {
            range,
            needs: if header && i > 0 { vec![0] } else { Vec::new() },
            whole: true,
            class: if header && i == 0 {
                Class::Low
            } else {
                Class::Normal
            },
            record: !(header && i == 0),
            comment: None,
        })
        .collect();
    Layout {
        units,
        ..Layout::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_has_no_fields() {
        for text in [
            "Yes, sir.\nNo, madam.\nWell, then.\n",
            "",
            "a\nb\nc\n",
            "One, two, three.\nFour, five, six.\n",
            "| a | b |\n|---|---|\n| 1 | 2 |\n",
        ] {
            assert_eq!(delimiter(text), None, "{text}");
        }
    }

    #[test]
    fn long_rows_and_many_fields_are_counted() {
        let row = vec!["x".repeat(40); 300].join(",");
        let text = format!("{row}\n{row}\n");
        assert_eq!(fields(&text, b','), [300, 300]);
        assert_eq!(rows(&text, b',').len(), 2);
        assert_eq!(delimiter(&text), Some(b','));
    }

    #[test]
    fn rows_need_their_header_and_quoted_breaks_end_no_row() {
        let text = "name,note\nIlse,\"two\nlines\"\r\nOlaf,x\n\nUlf,y";
        let parts = layout(text).finish(text);
        let rows: Vec<&str> = parts.units.iter().map(|u| &text[u.range.clone()]).collect();
        assert_eq!(
            rows,
            [
                "name,note\n",
                "Ilse,\"two\nlines\"\r\n",
                "Olaf,x\n\n",
                "Ulf,y"
            ]
        );
        assert!(parts.units[1..].iter().all(|u| u.needs == [0] && u.whole));
        // Figures in the first row: it is not a header.
        let text = "1,2\n3,4\n5,6\n";
        assert!(layout(text).units.iter().all(|u| u.needs.is_empty()));
    }
}
