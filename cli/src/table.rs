//! Tables for people: aligned columns, and below a row what there is to say of it, wrapped so that 80 columns hold it.

/// As wide as a line is at most, words that are longer aside.
const WIDTH: usize = 80;
/// How far what is said of a row stands in.
const INDENT: usize = 4;

/// A table that is being put together.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<(Vec<String>, Vec<String>)>,
}

impl Table {
    /// A table with these heads.
    pub(crate) fn new(heads: &[&str]) -> Self {
        Self { rows: vec![(heads.iter().map(|head| (*head).to_owned()).collect(), Vec::new())] }
    }

    /// Adds a row, with what there is to say of it.
    pub(crate) fn row(&mut self, cells: impl Into<Vec<String>>, notes: impl IntoIterator<Item = String>) {
        self.rows.push((cells.into(), notes.into_iter().collect()));
    }

    /// The table as text.
    pub(crate) fn show(&self) -> String {
        let columns = self.rows.iter().map(|(cells, _)| cells.len()).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|(cells, _)| cells.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (cells, notes) in &self.rows {
            let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
            notes.iter().for_each(|note| wrap(&mut text, note));
        }
        text
    }
}

/// Adds a text, each line of which stands in.
fn wrap(text: &mut String, note: &str) {
    let mut line = String::new();
    for word in note.split_whitespace() {
        if !line.is_empty() && INDENT + line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&format!("{:INDENT$}{line}\n", ""));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        text.push_str(&format!("{:INDENT$}{line}\n", ""));
    }
}

/// Bytes as people read them; a dash for what is not known.
pub(crate) fn size(bytes: Option<u64>) -> String {
    let Some(bytes) = bytes else { return "-".into() };
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1023.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_notes_wrapped() {
        let mut table = Table::new(&["MODEL", "DEVICE"]);
        table.row(["a-long-name".into(), "cpu:0".into()], ["why ".repeat(30)]);
        table.row(["b".into(), String::new()], []);
        let shown = table.show();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[..2], ["MODEL        DEVICE", "a-long-name  cpu:0"]);
        assert_eq!(lines[4..], ["b"]);
        assert!(lines.iter().all(|line| line.len() <= WIDTH) && lines[2].starts_with("    why why"));
    }

    #[test]
    fn sizes_have_units() {
        for (bytes, text) in [
            (None, "-"),
            (Some(0), "0 B"),
            (Some(1023), "1023 B"),
            (Some(1536), "1.5 KiB"),
            (Some((1 << 20) - 1), "1.0 MiB"),
            (Some(u64::MAX), "16777216.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
