//! Lines that are records: logs, listings, JSON lines.

use super::{Class, Layout, Unit, detect, indent, lines};

/// Takes a log or a listing apart: every line is whole, an indented one needs the one that it
/// continues, the rows of a table need its header.
pub(super) fn log(text: &str) -> Layout {
    if detect::is_diff(&text.lines().collect::<Vec<_>>()) {
        return diff(text);
    }
    let mut units: Vec<Unit> = Vec::new();
    let (mut entry, mut header): (Option<usize>, Option<usize>) = (None, None);
    let all: Vec<&str> = text.lines().take(64).collect();
    let first_header = detect::table_header(&all);
    for (number, range) in lines(text).enumerate() {
        let line = &text[range.clone()];
        if line.trim().is_empty() {
            // A blank line ends what a heading is over.
            header = header.filter(|_| first_header.is_some());
            continue;
        }
        let index = units.len();
        let continues = indent(line) > 0
            && indent(line) > units.first().map_or(0, |u| indent(&text[u.range.clone()]));
        let heads = Some(number) == first_header
            || (line.trim_end().ends_with(':')
                && !continues
                && line.split_whitespace().count() == 1);
        let mut unit = Unit {
            range,
            whole: true,
            record: true,
            ..Unit::default()
        };
        if heads {
            unit.class = Class::Low;
            unit.record = false;
            header = Some(index);
            entry = None;
        } else if continues && let Some(entry) = entry {
            unit.needs.push(entry);
        } else {
            unit.needs.extend(header);
            entry = Some(index);
        }
        units.push(unit);
    }
    Layout {
        units,
        ..Layout::default()
    }
}

/// Takes a unified diff apart: a line needs the head of its hunk, and that the names of the file.
fn diff(text: &str) -> Layout {
    let mut units: Vec<Unit> = Vec::new();
    let (mut file, mut hunk) = (Vec::new(), None);
    let all: Vec<_> = lines(text).collect();
    let starts = |i: Option<usize>, with: &str| {
        i.and_then(|i| all.get(i))
            .is_some_and(|range| text[range.clone()].starts_with(with))
    };
    for (i, range) in all.iter().enumerate() {
        let line = &text[range.clone()];
        let index = units.len();
        let mut unit = Unit {
            range: range.clone(),
            whole: true,
            ..Unit::default()
        };
        let names = [
            "diff ",
            "index ",
            "new file",
            "deleted file",
            "rename ",
            "similarity ",
        ];
        // A line that was taken out may begin with two more dashes.
        let named = names.iter().any(|name| line.starts_with(name))
            || line.starts_with("--- ") && starts(Some(i + 1), "+++ ")
            || line.starts_with("+++ ") && starts(i.checked_sub(1), "--- ");
        if line.starts_with("@@ ") {
            hunk = Some(index);
            unit.needs.clone_from(&file);
            unit.class = Class::Low;
        } else if named {
            // The names of a file belong together; the first after a hunk begins another file.
            if hunk.take().is_some() {
                file.clear();
            }
            unit.needs.clone_from(&file);
            unit.class = Class::Low;
            for &before in &file {
                let before: &mut Unit = &mut units[before];
                before.needs.push(index);
            }
            file.push(index);
        } else {
            unit.needs.extend(hunk);
        }
        units.push(unit);
    }
    Layout {
        units,
        ..Layout::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_line_needs_its_hunk_and_its_file() {
        let text = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n a\n-b\n+c\ndiff --git a/y b/y\n--- a/y\n+++ b/y\n@@ -1 +1 @@\n-d\n";
        let layout = log(text);
        let needs: Vec<&[usize]> = layout.units.iter().map(|u| u.needs.as_slice()).collect();
        assert_eq!(needs[3], [0, 1, 2]);
        assert_eq!(&needs[4..7], [&[3], &[3], &[3]]);
        assert_eq!(
            (needs[7], needs[10], needs[11]),
            (&[8, 9][..], &[7, 8, 9][..], &[10][..])
        );
    }

    #[test]
    fn a_stack_trace_needs_its_entry_and_a_row_its_header() {
        let text = "10:00:01 INFO a\n10:00:02 ERROR b\n  at f\n  at g\n10:00:03 INFO c\n";
        let layout = log(text);
        let needs: Vec<&[usize]> = layout.units.iter().map(|u| u.needs.as_slice()).collect();
        assert_eq!(needs, [&[] as &[usize], &[], &[1], &[1], &[]]);
        let text = "USER  PID  COMMAND\nroot  1    init\nroot  22   sshd\n";
        let layout = log(text);
        assert_eq!(layout.units[0].class, Class::Low);
        assert!(layout.units[1..].iter().all(|u| u.needs == [0]));
    }
}
