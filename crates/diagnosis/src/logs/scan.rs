//! Takes a line apart from left to right. What is not there is `None`; nothing here panics.

/// The rest of a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan<'a>(pub(super) &'a str);

impl<'a> Scan<'a> {
    /// What stands behind the first occurrence of `mark`.
    pub(super) fn after(text: &'a str, mark: &str) -> Option<Self> {
        text.split_once(mark).map(|(_, rest)| Self(rest))
    }

    /// Takes `literal`, if that is what comes next.
    pub(super) fn literal(&mut self, literal: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(literal)?;
        Some(())
    }

    /// Takes everything up to `mark`, and `mark`.
    pub(super) fn until(&mut self, mark: &str) -> Option<&'a str> {
        let (head, rest) = self.0.split_once(mark)?;
        self.0 = rest;
        Some(head)
    }

    /// Skips blanks.
    pub(super) fn blanks(&mut self) {
        self.0 = self.0.trim_start();
    }

    /// Takes the characters that fit; none is no failure.
    pub(super) fn while_(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|character| !fits(character)).unwrap_or(self.0.len());
        let (head, rest) = self.0.split_at(end);
        self.0 = rest;
        head
    }

    /// Takes a decimal number.
    pub(super) fn number(&mut self) -> Option<u64> {
        self.while_(|character| character.is_ascii_digit()).parse().ok()
    }

    /// Takes a hexadecimal number without prefix.
    pub(super) fn hexadecimal(&mut self) -> Option<u64> {
        u64::from_str_radix(self.while_(|character| character.is_ascii_hexdigit()), 16).ok()
    }

    /// Takes the number of a CPU: no machine has more than a few thousand.
    pub(super) fn cpu(&mut self) -> Option<u32> {
        self.number().and_then(cpu)
    }
}

/// A CPU's number, if there can be such a CPU. The most that Linux can be built for is 8,192.
pub(super) fn cpu(number: u64) -> Option<u32> {
    const MOST: u64 = 8192;
    (number < MOST).then_some(number as u32)
}

/// CPU numbers as kernels list them: `0-1,3`. Nothing that is no list.
pub(super) fn cpus(list: &str) -> Option<Vec<u32>> {
    let number = |text: &str| cpu(text.trim().parse().ok()?);
    let mut found = Vec::new();
    for part in list.trim().trim_end_matches(':').split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        found.extend(number(from)?..=number(to)?);
        if found.len() > 8192 {
            return None;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_and_nonsense_is_refused() {
        assert_eq!(cpus("0-1,3:"), Some(vec![0, 1, 3]));
        assert_eq!(cpus(" 7"), Some(vec![7]));
        for wrong in ["", "a", "1-", "0-99999999999", "0-8191,0-8191", "-1"] {
            assert_eq!(cpus(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_line_is_taken_apart_from_left_to_right() {
        let mut scan = Scan::after("csd: on CPU#3, waiting 5 ns", "CPU#").expect("there");
        assert_eq!(scan.cpu(), Some(3));
        assert_eq!(scan.until("waiting "), Some(", "));
        assert_eq!((scan.number(), scan.0), (Some(5), " ns"));
        assert_eq!(scan.number(), None);
    }
}
