//! Tables and lists in the forms of virsh, which scripts read.

/// A table with a heading.
#[derive(Debug)]
pub(crate) struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// The space between columns.
const GAP: usize = 3;

impl Table {
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self {
            heading: heading.map(str::to_owned).into(),
            rows: Vec::new(),
        }
    }

    /// Adds a column, whose cells are added to rows by [`Self::row`] as the others are.
    pub(crate) fn column(&mut self, heading: &str) {
        self.heading.push(heading.to_owned());
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as lines. Each cell but the last of a row has the width of its column.
    pub(crate) fn render(&self, with_heading: bool) -> String {
        let lines = || std::iter::once(&self.heading).chain(&self.rows);
        let width = |column| {
            let cells = lines().filter_map(|line: &Vec<String>| line.get(column));
            cells
                .map(|cell: &String| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heading.len()).map(width).collect();
        let mut text = String::new();
        if with_heading {
            push_line(&mut text, &self.heading, &widths);
            let dashes: usize = widths.iter().map(|width| width + GAP).sum();
            text.push_str(&"-".repeat(dashes));
            text.push('\n');
        }
        for row in &self.rows {
            push_line(&mut text, row, &widths);
        }
        text
    }
}

fn push_line(text: &mut String, cells: &[String], widths: &[usize]) {
    text.push(' ');
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        text.push_str(cell);
        if index + 1 < cells.len() {
            let padding = width.saturating_sub(cell.chars().count()) + GAP;
            text.push_str(&" ".repeat(padding));
        }
    }
    text.push('\n');
}

/// Lines of `Label:  value`, whose values begin in the same column, as `dominfo` prints them.
pub(crate) fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let line = |(label, value): (&str, String)| {
        let label = format!("{label}:");
        format!("{label:<15} {value}\n")
    };
    fields.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[&str; 3]]) -> Table {
        let mut table = Table::new(["Id", "Name", "State"]);
        for row in rows {
            table.row(row.map(str::to_owned).into());
        }
        table
    }

    #[test]
    fn a_table_is_virshs() {
        // As virsh 9.0 prints its test guest.
        assert_eq!(
            table(&[["1", "test", "running"]]).render(true),
            " Id   Name   State\n----------------------\n 1    test   running\n"
        );
        assert_eq!(
            table(&[["-", "test", "shut off"]]).render(true),
            " Id   Name   State\n-----------------------\n -    test   shut off\n"
        );
        assert_eq!(
            table(&[]).render(true),
            " Id   Name   State\n--------------------\n"
        );
    }

    #[test]
    fn a_last_cell_that_is_empty_leaves_the_gap() {
        let mut table = Table::new(["Name", "Title"]);
        table.row(vec!["a".to_owned(), String::new()]);
        assert_eq!(table.render(false), " a      \n");
    }

    #[test]
    fn fields_begin_in_one_column() {
        assert_eq!(
            fields([("Id", "1".to_owned()), ("Max memory", "5 KiB".to_owned())]),
            "Id:             1\nMax memory:     5 KiB\n"
        );
    }
}
