//! Tables as text.

/// Whether a column's cells lean left or right.
#[derive(Clone, Copy)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows under a header and a rule, each column as wide as its widest cell; no spaces at the ends of lines.
pub(crate) fn render(header: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].0.chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells
            .zip(&widths)
            .zip(header)
            .map(|((cell, &width), (_, align))| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            })
            .collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    let rule = widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>().join("  ") + "\n";
    let mut text = line(&mut header.iter().map(|(name, _)| *name)) + &rule;
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let header = [("suite", Align::Left), ("passed", Align::Right), ("why", Align::Left)];
        let rows = [
            vec!["a".into(), "1".into(), "".into()],
            vec!["größer".into(), "12345678".into(), "no device".into()],
        ];
        assert_eq!(
            render(&header, &rows),
            "suite     passed  why\n\
             ------  --------  ---------\n\
             a              1\n\
             größer  12345678  no device\n"
        );
    }
}
