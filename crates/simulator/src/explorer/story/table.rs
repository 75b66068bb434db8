//! The table: a row per operation and a column per CPU, as wide as the page.

use core::fmt::Write;

use super::rows::{Cell, Row, rows};
use super::{Account, words};

/// Narrower columns than this are not read any more: then the table becomes a list.
const NARROWEST: usize = 20;
/// Between two columns.
const RULE: &str = " | ";

pub(super) fn table(account: &Account, width: usize, fold: bool) -> String {
    let rows = rows(account, fold);
    let cpus = account.start.len();
    // Who neither does anything nor is sent anything has no column.
    let shown: Vec<usize> =
        (0..cpus).filter(|&cpu| rows.iter().any(|row| !row.cells[cpu].is_empty())).collect();
    let numbers = rows.iter().map(|row| row.number().len()).max().unwrap_or(1) + 2;
    let room = width.saturating_sub(numbers + RULE.len() * shown.len());
    let mut text = String::new();
    if shown.len() * NARROWEST > room {
        list(&mut text, &rows, numbers, width);
        return text;
    }
    let wanted = shown.iter().map(|&cpu| {
        let cells = rows.iter().map(|row| row.cells[cpu].text().chars().count());
        cells.max().unwrap_or(0).max(format!("CPU {cpu}").len())
    });
    let widths = shares(&wanted.collect::<Vec<_>>(), room);
    let heads: Vec<Vec<String>> = shown.iter().map(|cpu| vec![format!("CPU {cpu}")]).collect();
    line(&mut text, &format!("{:>numbers$}", "#"), &heads, &widths);
    let rules = widths.iter().map(|&width| format!("-+-{}", "-".repeat(width)));
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "{}{}", "-".repeat(numbers), rules.collect::<String>());
    for row in &rows {
        let cells: Vec<Vec<String>> =
            shown.iter().zip(&widths).map(|(&cpu, &width)| cell(&row.cells[cpu], width)).collect();
        line(&mut text, &label(row, numbers), &cells, &widths);
    }
    text
}

/// The row's number, with a star if the violation is about it.
fn label(row: &Row, width: usize) -> String {
    let star = if row.evidence { "*" } else { "" };
    format!("{:>width$}", format!("{star}{}", row.number()))
}

/// The lines of text of a cell.
fn cell(cell: &Cell, width: usize) -> Vec<String> {
    if cell.is_empty() {
        return Vec::new();
    }
    let margin = cell.margin.len();
    let first = width.saturating_sub(margin + cell.sign.len());
    let lines = words::fill(&cell.parts, first, width.saturating_sub(margin + 3));
    let indented = lines.into_iter().enumerate().map(|(index, line)| {
        let indent = if index == 0 { cell.sign } else { "   " };
        format!("{}{indent}{line}", cell.margin)
    });
    indented.collect()
}

/// As many lines of text as the highest cell has.
fn line(text: &mut String, label: &str, cells: &[Vec<String>], widths: &[usize]) {
    let height = cells.iter().map(Vec::len).max().unwrap_or(0);
    for index in 0..height {
        let mut line = if index == 0 { label.to_owned() } else { " ".repeat(label.len()) };
        for (cell, &width) in cells.iter().zip(widths) {
            let part = cell.get(index).map_or("", String::as_str);
            let _ = write!(line, "{RULE}{part:width$}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// Without columns: for many CPUs or little room.
fn list(text: &mut String, rows: &[Row], numbers: usize, width: usize) {
    for row in rows {
        let mut label = label(row, numbers);
        let own = usize::from(row.cpu);
        let others = (0..row.cells.len()).filter(|&cpu| cpu != own);
        for cpu in core::iter::once(own).chain(others).filter(|&cpu| !row.cells[cpu].is_empty()) {
            let name = format!("CPU {cpu}");
            let room = width.saturating_sub(label.len() + RULE.len() + name.len() + 1);
            for (index, line) in cell(&row.cells[cpu], room).iter().enumerate() {
                let name = if index == 0 { name.clone() } else { " ".repeat(name.len()) };
                let _ = writeln!(text, "{label}{RULE}{name} {line}");
                label = " ".repeat(label.len());
            }
        }
    }
}

/// Shares `room` out: nobody gets more than is wanted, and who wants much gets no less than another who wants
/// as much.
fn shares(wanted: &[usize], room: usize) -> Vec<usize> {
    let fits = |most: usize| wanted.iter().map(|&wanted| wanted.min(most)).sum::<usize>() <= room;
    let most = (0..=room).rev().find(|&most| fits(most)).unwrap_or(0);
    let mut shares: Vec<usize> = wanted.iter().map(|&wanted| wanted.min(most)).collect();
    // What is left, because columns are whole characters.
    let mut left = room - shares.iter().sum::<usize>().min(room);
    for (share, &wanted) in shares.iter_mut().zip(wanted) {
        if *share < wanted && left > 0 {
            *share += 1;
            left -= 1;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_goes_to_those_who_need_it() {
        assert_eq!(shares(&[10, 20, 30], 100), [10, 20, 30]);
        assert_eq!(shares(&[10, 50, 60], 70), [10, 30, 30]);
        assert_eq!(shares(&[10, 50, 60], 71), [10, 31, 30]);
        assert_eq!(shares(&[50, 50], 0), [0, 0]);
        assert_eq!(shares(&[], 10), [0; 0]);
    }
}
