//! Columns: aligned by display width, painted, and cut to the terminal where one watches.

use anstyle::Style;

use super::{Console, STRONG, cut, display_width};

/// Between two columns.
const GAP: usize = 2;
/// No column of text is made narrower than this to fit a terminal.
const NARROWEST: usize = 8;

/// On which side the cells of a column begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text. It may be cut.
    Left,
    /// Numbers, which are never cut.
    Right,
}

/// One cell.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell in that style.
    pub fn painted(style: Style, text: impl Into<String>) -> Self {
        Self { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::painted(Style::new(), text)
    }
}

/// Rows below a heading.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(Cell, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<'a>(columns: impl IntoIterator<Item = (&'a str, Align)>) -> Self {
        let columns = columns.into_iter().map(|(title, align)| (Cell::painted(STRONG, title), align));
        Self { columns: columns.collect(), rows: Vec::new() }
    }

    /// Adds a row. Cells that are missing at its end are empty, cells without a column are not shown.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The heading and the rows as `console` shows them.
    pub fn lines(&self, console: &Console) -> Vec<String> {
        let limit = console.columns();
        let widths = self.widths(limit);
        let headings = self.columns.iter().map(|(title, _)| title).collect();
        let rows = self.rows.iter().map(|row| row.iter().collect());
        std::iter::once(headings).chain(rows).map(|row| self.line(console, row, &widths, limit)).collect()
    }

    /// As wide as the widest cell; where that is too much, the widest columns of text give way first.
    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> =
            self.columns.iter().map(|(title, _)| display_width(&title.text)).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(display_width(&cell.text));
            }
        }
        let Some(limit) = limit else { return widths };
        let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        while total(&widths) > limit {
            let texts = widths.iter_mut().zip(&self.columns).filter(|(_, (_, align))| *align == Align::Left);
            let Some(widest) = texts.map(|(width, _)| width).max_by_key(|width| **width) else { break };
            if *widest <= NARROWEST {
                break;
            }
            *widest -= 1;
        }
        widths
    }

    fn line(&self, console: &Console, row: Vec<&Cell>, widths: &[usize], limit: Option<usize>) -> String {
        let mut line = String::new();
        // What the cell before leaves to be filled, written only when something follows.
        let mut owed = 0;
        let mut left = limit.unwrap_or(usize::MAX);
        for ((cell, width), (_, align)) in row.into_iter().zip(widths).zip(&self.columns) {
            let text = cut(&cell.text, (*width).min(left.saturating_sub(owed)));
            let fill = width.saturating_sub(display_width(&text));
            let (before, after) = if *align == Align::Left { (0, fill) } else { (fill, 0) };
            if !text.is_empty() {
                line.push_str(&" ".repeat(owed + before));
                line.push_str(&console.paint(cell.style, &text).to_string());
                left = left.saturating_sub(owed + before + display_width(&text));
                owed = 0;
            } else {
                owed += before;
            }
            owed += after + GAP;
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::super::GOOD;
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new([("name", Align::Left), ("count", Align::Right), ("why", Align::Left)]);
        table.row([Cell::painted(GOOD, "demo"), "1".into(), "it ended as it should".into()]);
        table.row(["線".into(), "12345678".into()]);
        table
    }

    #[test]
    fn columns_align_by_display_width_and_end_without_blanks() {
        let lines = sample().lines(&Console::plain(std::io::sink()));
        assert_eq!(
            lines,
            ["name     count  why", "demo         1  it ended as it should", "線    12345678",]
        );
    }

    #[test]
    fn a_terminal_gets_colours_and_no_line_too_long() {
        let mut table = sample();
        table.row(["n".into(), "2".into(), "x".repeat(100).into()]);
        let console = Console::watched(std::io::sink());
        let lines = table.lines(&console);
        assert_eq!(lines[1], format!("{}         1  it ended as it should", console.paint(GOOD, "demo")));
        assert_eq!(lines[3], format!("n            2  {}..", "x".repeat(22)));
        for line in &lines[2..] {
            assert!(display_width(line) <= 40, "{line}");
        }
    }

    #[test]
    fn numbers_are_not_cut_while_text_can_give_way() {
        let mut table = Table::new([("what", Align::Left), ("number", Align::Right)]);
        table.row(["y".repeat(60).into(), "123456789".into()]);
        let lines = table.lines(&Console::watched(std::io::sink()));
        assert_eq!(lines[1], format!("{}..  123456789", "y".repeat(27)));
    }
}
